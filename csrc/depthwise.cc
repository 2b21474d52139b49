// Groups of one input channel: no permutation where each has one output channel too.
#include "lanes_kernel.h"

GwStatus GW_NAME(narrow)(const GwJob& job);

GwStatus GW_NAME(depthwise)(const GwJob& job) {
  return job.convolution->in_channels == job.convolution->out_channels ? run_lanes<1>(job) : GW_NAME(narrow)(job);
}
