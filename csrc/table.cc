// The families as this instruction set's build has them.
#include "kernels.h"

GwStatus GW_NAME(depthwise)(const GwJob&);
GwStatus GW_NAME(narrow)(const GwJob&);
GwStatus GW_NAME(wide)(const GwJob&);
GwStatus GW_NAME(max_pool)(const GwPoolJob&);
GwStatus GW_NAME(normalize)(int passes, const GwNormalization&, const GwExecutor&);

#define GW_TEXT_(name) #name
#define GW_TEXT(name) GW_TEXT_(name)

extern "C" const GwKernels GW_NAME(kernels) = {GW_TEXT(GW_SET), GW_NAME(depthwise), GW_NAME(narrow),
                                               GW_NAME(wide),   GW_NAME(max_pool),  GW_NAME(normalize)};
