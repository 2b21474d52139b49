// A convolution's three arrays, or their gradients, and which of them a GwPass reads and writes.
#pragma once

namespace {

enum Role { kInputs, kKernel, kOutputs };
// For each pass: its two arguments and its result.
constexpr Role kRoles[3][3] = {
    {kInputs, kKernel, kOutputs}, {kOutputs, kKernel, kInputs}, {kInputs, kOutputs, kKernel}};

}  // namespace
