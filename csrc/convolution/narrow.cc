// Groups of 2 to 8 channels; depthwise convolutions of several outputs a channel; and every other width that a caller
// names this family for.
#include "lanes_kernel.h"
#include "separable.h"

namespace {

template <int Width>
struct Groups {
  static constexpr int width = Width;
};

// Calls function(the width of all groups, 0 where there is no fixed pattern).
template <typename Function>
GwStatus with_width(const GwConvolution& c, const Function& function) {
  const int64_t in_width = c.in_channels / c.groups, out_width = c.out_channels / c.groups;
  // Fewer channels than a vector has lanes cannot overlap one.
  if (in_width == out_width && c.out_channels >= kLanes) {
    if (in_width == 2) return function(Groups<2>{});
    if (in_width == 4) return function(Groups<4>{});
    if (in_width == 8) return function(Groups<8>{});
  }
  return function(Groups<0>{});
}

}  // namespace

GwStatus GW_NAME(narrow)(const GwJob& job) {
  return with_width(*job.convolution, [&](auto groups) { return run_lanes<groups.width>(job); });
}

GwStatus GW_NAME(narrow_separable)(const GwJob* expansion, const GwJob& grouped, const GwJob& pointwise) {
  return with_width(*grouped.convolution,
                    [&](auto groups) { return run_separable<groups.width>(expansion, grouped, pointwise); });
}
