// What the convolutions among TensorFlow's operations share: their attributes, and their sizes at each call.
#pragma once
#include "roles.h"
#include "tensorflow_call.h"

#include <algorithm>

namespace {

// Products of two such sizes do not overflow.
constexpr int64_t kLargest = INT32_MAX;

constexpr const char* kRoleNames[] = {"inputs", "kernel", "outputs' gradient"};

struct Attributes {
  int64_t groups = 0;
  std::vector<int64_t> strides, dilations, padding;
  int64_t activation = GW_LINEAR;
};

inline bool read_sizes(TF_OpKernelConstruction* construction, const char* name, int64_t least, const Status& status,
                       std::vector<int64_t>* sizes) {
  int32_t length = 0, unused = 0;
  TF_OpKernelConstruction_GetAttrSize(construction, name, &length, &unused, status);
  if (!status.is_ok()) return false;
  sizes->resize(std::max(length, 0));
  TF_OpKernelConstruction_GetAttrInt64List(construction, name, sizes->data(), length, status);
  for (int64_t size : *sizes) {
    if (size >= least && size <= kLargest) continue;
    return status.refuse(std::string(name) + " has the entry " + std::to_string(size) + ": must be from " +
                         std::to_string(least) + " to " + std::to_string(kLargest));
  }
  return status.is_ok();
}

inline bool read_attributes(TF_OpKernelConstruction* construction, const Status& status, Attributes* attributes) {
  TF_OpKernelConstruction_GetAttrInt64(construction, "groups", &attributes->groups, status);
  if (!status.is_ok() || !read_sizes(construction, "strides", 1, status, &attributes->strides) ||
      !read_sizes(construction, "dilations", 1, status, &attributes->dilations) ||
      !read_sizes(construction, "padding", 0, status, &attributes->padding)) {
    return false;
  }
  if (attributes->groups < 1) {
    return status.refuse("groups=" + std::to_string(attributes->groups) + ": must be positive");
  }
  const size_t sides = attributes->padding.size();
  return (attributes->strides.size() == 2 && attributes->dilations.size() == 2 && (sides == 0 || sides == 4)) ||
         status.refuse("strides and dilations must have two entries, padding four or none");
}

// Reads an attribute from 0 to `most`.
inline bool read_number(TF_OpKernelConstruction* construction, const char* name, int64_t most, const Status& status,
                        int64_t* value) {
  TF_OpKernelConstruction_GetAttrInt64(construction, name, value, status);
  if (!status.is_ok() || (*value >= 0 && *value <= most)) return status.is_ok();
  return status.refuse(std::string(name) + "=" + std::to_string(*value) + ": must be from 0 to " +
                       std::to_string(most));
}

// What becomes of one axis of the image: its outputs, 0 if it is too small, and the padding before it.
struct Axis {
  int64_t out, before;

  Axis(const Attributes& attributes, size_t axis, int64_t size, int64_t kernel) {
    const int64_t stride = attributes.strides[axis], extent = (kernel - 1) * attributes.dilations[axis] + 1;
    int64_t sum;
    if (attributes.padding.empty()) {
      const int64_t wanted = (size + stride - 1) / stride;
      sum = std::max<int64_t>((wanted - 1) * stride + extent - size, 0);
      before = sum / 2;
    } else {
      before = attributes.padding[2 * axis];
      sum = before + attributes.padding[2 * axis + 1];
    }
    out = size + sum < extent ? 0 : (size + sum - extent) / stride + 1;
  }
};

// Fills in the convolution whose three arrays have these shapes; a forward pass leaves the third to this function.
inline bool resolve(GwPass pass, const Attributes& attributes, Shape* shapes, const Status& status, GwConvolution* c) {
  const Shape &inputs = shapes[kInputs], &kernel = shapes[kKernel];
  const int64_t groups = attributes.groups;
  for (const Shape* shape : {&inputs, &kernel}) {
    for (int64_t size : *shape) {
      if (size < 0 || size > kLargest) {
        return status.refuse("shape " + text(*shape) + ": sizes must be from 0 to " + std::to_string(kLargest));
      }
    }
  }
  if (inputs[3] % groups || inputs[3] / groups != kernel[2] || kernel[3] % groups) {
    return status.refuse("kernel of shape " + text(kernel) + " for inputs of shape " + text(inputs) + " in " +
                         std::to_string(groups) + " groups: its third size must be the inputs' channels / groups, " +
                         "and groups must divide both its fourth and the inputs' channels");
  }
  const Axis vertical(attributes, 0, inputs[1], kernel[0]), horizontal(attributes, 1, inputs[2], kernel[1]);
  if (!vertical.out || !horizontal.out) {
    return status.refuse("inputs of shape " + text(inputs) + " are smaller than the dilated kernel of shape " +
                         text(kernel) + "; enlarge the image or pad more");
  }
  const Shape outputs{inputs[0], vertical.out, horizontal.out, kernel[3]};
  if (pass != GW_FORWARD && shapes[kOutputs] != outputs) {
    return status.refuse("outputs' gradient of shape " + text(shapes[kOutputs]) + ": must have the outputs' shape " +
                         text(outputs));
  }
  shapes[kOutputs] = outputs;
  c->batch = inputs[0], c->height = inputs[1], c->width = inputs[2], c->in_channels = inputs[3];
  c->out_height = outputs[1], c->out_width = outputs[2], c->out_channels = outputs[3];
  c->kernel_height = kernel[0], c->kernel_width = kernel[1], c->groups = groups;
  c->stride_y = attributes.strides[0], c->stride_x = attributes.strides[1];
  c->dilation_y = attributes.dilations[0], c->dilation_x = attributes.dilations[1];
  c->pad_top = vertical.before, c->pad_left = horizontal.before;
  if (!gw_family(c)) {
    return status.refuse("inputs of shape " + text(inputs) + ", kernel of shape " + text(kernel) + ", outputs of " +
                         "shape " + text(outputs) + ": too large to index, or the kernel or the channels are empty");
  }
  return true;
}

// One pass: its sizes and its two arguments. A third argument tells a gradient the shape of what it is a gradient to.
struct Pass {
  GwPass number;
  Shape shapes[3];  // by role
  GwConvolution sizes{};
  const float *a = nullptr, *b = nullptr;

  explicit Pass(GwPass number) : number(number) {}
  const Shape& result() const { return shapes[kRoles[number][2]]; }
};

inline bool read_pass(const Attributes& attributes, Arrays* arrays, Pass* pass) {
  const Role* roles = kRoles[pass->number];
  const Status& status = arrays->status;
  for (auto [position, array] : {std::pair{0, &pass->a}, {1, &pass->b}}) {
    Shape& shape = pass->shapes[roles[position]];
    *array = arrays->argument(&shape);
    if (!status.is_ok()) return false;
    if (shape.size() == 4) continue;
    return status.refuse(std::string(kRoleNames[roles[position]]) + " of rank " + std::to_string(shape.size()) +
                         ": must have rank 4");
  }
  if (pass->number != GW_FORWARD) {
    Shape shape;
    const auto* result = arrays->argument<int32_t>(&shape);
    if (!status.is_ok()) return false;
    if (shape != Shape{4}) return status.refuse("the third argument must be a shape: four integers");
    pass->shapes[roles[2]].assign(result, result + 4);
  }
  return resolve(pass->number, attributes, pass->shapes, status, &pass->sizes);
}

// On the core's own threads: TensorFlow's C interface shows none.
inline bool run(const Pass& pass, float* out, const GwFusion& fusion, const Status& status) {
  return status.is_ok() &&
         status.accept(gw_convolve(pass.number, &pass.sizes, pass.a, pass.b, out, &fusion, nullptr, nullptr));
}

// Their declarations, and those of what else an operation has.
inline Operation::Texts attributes_and(Operation::Texts more) {
  more.insert(more.begin(), {"groups: int", "strides: list(int)", "dilations: list(int)", "padding: list(int)"});
  return more;
}

// Makes a kernel's attributes; read_more(status, attributes) reads what they have beside those of every convolution.
template <typename Kernel, typename Read>
void* make(TF_OpKernelConstruction* construction, const char* subject, const Read& read_more) {
  const Status status(subject);
  auto attributes = std::make_unique<Kernel>();
  if (read_attributes(construction, status, attributes.get()) && read_more(status, attributes.get())) {
    return attributes.release();
  }
  TF_OpKernelConstruction_Failure(construction, status);
  return nullptr;
}

}  // namespace
