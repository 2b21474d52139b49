// Groups of one input channel: no permutation where each has one output channel too.
#include "lanes_kernel.h"

GwStatus GW_NAME(narrow)(const GwJob& job);

GwStatus GW_NAME(depthwise)(const GwJob& job) {
  const bool is_plain = job.convolution->in_channels == job.convolution->out_channels;
  return is_plain && job.convolution->out_channels >= kLanes ? run_lanes<1>(job) : GW_NAME(narrow)(job);
}
