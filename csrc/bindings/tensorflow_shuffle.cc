// The channel shuffle as TensorFlow's operation over the core:
//
//   GroupwiseShuffle(inputs) -> each pixel's channels, as (groups, n), transposed to (n, groups)
//
// Attributes: groups; inverse, 1 where (n, groups) become (groups, n) instead, else 0. Arrays are float32, of shape
// (..., channels).
#include "tensorflow_call.h"

namespace {

constexpr const char* kSubject = "GroupwiseShuffle";

struct Shuffle {
  int64_t groups = 1, inverse = 0;
};

void* create(TF_OpKernelConstruction* construction) {
  const Status status(kSubject);
  auto shuffle = std::make_unique<Shuffle>();
  TF_OpKernelConstruction_GetAttrInt64(construction, "groups", &shuffle->groups, status);
  if (status.is_ok()) TF_OpKernelConstruction_GetAttrInt64(construction, "inverse", &shuffle->inverse, status);
  if (status.is_ok()) return shuffle.release();
  TF_OpKernelConstruction_Failure(construction, status);
  return nullptr;
}

void destroy(void* kernel) { delete static_cast<Shuffle*>(kernel); }

void compute(void* kernel, TF_OpKernelContext* context) {
  answer(context, kSubject, [=](const Status& status) {
    const auto [groups, inverse] = *static_cast<const Shuffle*>(kernel);
    Arrays arrays(context, status);
    Shape shape;
    const float* inputs = arrays.argument(&shape);
    if (!status.is_ok()) return false;
    if (shape.empty() || shape.back() < 1 || shape.back() % groups) {
      return status.refuse("inputs of shape " + text(shape) +
                           ": must be (..., channels), and groups=" + std::to_string(groups) + " divide the channels");
    }
    int64_t pixels = 1;
    for (size_t axis = 0; axis + 1 < shape.size(); ++axis) pixels *= shape[axis];
    float* outputs = arrays.result(shape);
    const int64_t n = shape.back() / groups, rows = inverse ? n : groups;
    // On the core's own threads: TensorFlow's C interface shows none.
    return status.is_ok() && status.accept(gw_shuffle(pixels, rows, shape.back() / rows, inputs, outputs, nullptr));
  });
}

// Runs when TensorFlow loads the library.
const bool registered = [] {
  register_operation({"GroupwiseShuffle",
                      {"inputs: float"},
                      {"outputs: float"},
                      {"groups: int >= 1", "inverse: int >= 0"},
                      create,
                      compute,
                      destroy});
  return true;
}();

}  // namespace
