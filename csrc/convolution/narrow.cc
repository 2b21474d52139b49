// Groups of 2 to 8 channels; depthwise convolutions of several outputs a channel; and every other width that a caller
// names this family for.
#include "lanes_kernel.h"

GwStatus GW_NAME(narrow)(const GwJob& job) {
  const int64_t in_width = job.convolution->in_channels / job.convolution->groups;
  const int64_t out_width = job.convolution->out_channels / job.convolution->groups;
  // Fewer channels than a vector has lanes cannot overlap one.
  if (in_width == out_width && job.convolution->out_channels >= kLanes) {
    if (in_width == 2) return run_lanes<2>(job);
    if (in_width == 4) return run_lanes<4>(job);
    if (in_width == 8) return run_lanes<8>(job);
  }
  return run_lanes<0>(job);
}
