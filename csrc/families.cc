// The kernels as this instruction set's build has them. A family of them for convolutions is its file in convolution/
// and its row here.
#include "kernels.h"

GwStatus GW_NAME(depthwise)(const GwJob&);
GwStatus GW_NAME(depthwise_separable)(const GwJob*, const GwJob&, const GwJob&);
GwStatus GW_NAME(narrow)(const GwJob&);
GwStatus GW_NAME(narrow_separable)(const GwJob*, const GwJob&, const GwJob&);
GwStatus GW_NAME(wide)(const GwJob&);
GwStatus GW_NAME(max_pool)(const GwPoolJob&);
GwStatus GW_NAME(normalize)(int passes, const GwNormalization&, const GwExecutor&);
void GW_NAME(resize)(const GwResizeJob&);
void GW_NAME(shuffle)(const GwShuffleJob&);

namespace {

bool always(const GwConvolution&) { return true; }
bool never(const GwConvolution&) { return false; }
bool is_grouped(const GwConvolution& c) { return c.groups > 1; }
bool is_depthwise(const GwConvolution& c) { return is_grouped(c) && c.in_channels == c.groups; }
// From 9 channels on, a vector is better filled by one group's channels than by several groups.
bool has_narrow_groups(const GwConvolution& c) {
  return c.in_channels / c.groups <= 8 && c.out_channels / c.groups <= 8;
}

constexpr GwFamily kFamilies[] = {{"depthwise", is_depthwise, always, GW_NAME(depthwise), GW_NAME(depthwise_separable)},
                                  {"narrow", is_grouped, has_narrow_groups, GW_NAME(narrow), GW_NAME(narrow_separable)},
                                  {"wide", always, always, GW_NAME(wide), nullptr},
                                  {"reference", always, never, gw_reference, nullptr},
                                  {}};

}  // namespace

#define GW_TEXT_(name) #name
#define GW_TEXT(name) GW_TEXT_(name)

extern "C" {
extern const GwKernels GW_NAME(kernels);
const GwKernels GW_NAME(kernels) = {GW_TEXT(GW_SET),    kFamilies,       GW_NAME(max_pool),
                                    GW_NAME(normalize), GW_NAME(resize), GW_NAME(shuffle)};
}
