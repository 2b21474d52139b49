// Groups of one input channel: no permutation where each has one output channel too.
#include "lanes_kernel.h"
#include "separable.h"

GwStatus GW_NAME(narrow)(const GwJob& job);
GwStatus GW_NAME(narrow_separable)(const GwJob* expansion, const GwJob& grouped, const GwJob& pointwise);

namespace {

bool is_plain(const GwConvolution& c) { return c.in_channels == c.out_channels && c.out_channels >= kLanes; }

}  // namespace

GwStatus GW_NAME(depthwise)(const GwJob& job) {
  return is_plain(*job.convolution) ? run_lanes<1>(job) : GW_NAME(narrow)(job);
}

GwStatus GW_NAME(depthwise_separable)(const GwJob* expansion, const GwJob& grouped, const GwJob& pointwise) {
  return is_plain(*grouped.convolution) ? run_separable<1>(expansion, grouped, pointwise)
                                        : GW_NAME(narrow_separable)(expansion, grouped, pointwise);
}
