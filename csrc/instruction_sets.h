// The kernels of the instruction set in use.
#pragma once
#include "kernels.h"

// Those that gw_use_instruction_set has chosen; before it has, GROUPWISE_INSTRUCTION_SET's, or the machine's best.
const GwKernels& gw_kernels();
