// TensorFlow's operations over the core, through TensorFlow's C interface:
//
//   GroupwiseConv2D(inputs, kernel) -> outputs
//   GroupwiseFusedConv2D(inputs, kernel, bias, residual) -> activation(outputs + bias + residual)
//   GroupwiseConv2DInputGradient(outputs' gradient, kernel, inputs' shape) -> inputs' gradient
//   GroupwiseConv2DKernelGradient(inputs, outputs' gradient, kernel's shape) -> kernel's gradient
//
// Attributes: groups, strides and dilations (vertical, horizontal), padding (top, bottom, left, right; empty is "same",
// settled at each call because the image's size may differ). The fused one has three more: activation (GwActivation),
// biases and residuals (how many are given, 0 or 1). Arrays are float32, shapes int32.
#include "roles.h"
#include "tensorflow_call.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace {

constexpr const char* kSubject = "GroupwiseConv2D";
// Products of two such sizes do not overflow.
constexpr int64_t kLargest = INT32_MAX;

constexpr const char* kRoleNames[] = {"inputs", "kernel", "outputs' gradient"};

struct Attributes {
  int64_t groups = 0;
  std::vector<int64_t> strides, dilations, padding;
  int64_t activation = GW_LINEAR, biases = 0, residuals = 0;
};

bool read_sizes(TF_OpKernelConstruction* construction, const char* name, int64_t least, const Status& status,
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

bool read_attributes(TF_OpKernelConstruction* construction, const Status& status, Attributes* attributes) {
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

bool read_epilogue(TF_OpKernelConstruction* construction, const Status& status, Attributes* attributes) {
  for (auto [name, value, most] : {std::tuple{"activation", &attributes->activation, int64_t{GW_ACTIVATIONS - 1}},
                                   {"biases", &attributes->biases, 1},
                                   {"residuals", &attributes->residuals, 1}}) {
    TF_OpKernelConstruction_GetAttrInt64(construction, name, value, status);
    if (!status.is_ok()) return false;
    if (*value >= 0 && *value <= most) continue;
    return status.refuse(std::string(name) + "=" + std::to_string(*value) + ": must be from 0 to " +
                         std::to_string(most));
  }
  return true;
}

template <bool is_fused>
void* create(TF_OpKernelConstruction* construction) {
  const Status status(kSubject);
  auto attributes = std::make_unique<Attributes>();
  if (read_attributes(construction, status, attributes.get()) &&
      (!is_fused || read_epilogue(construction, status, attributes.get()))) {
    return attributes.release();
  }
  TF_OpKernelConstruction_Failure(construction, status);
  return nullptr;
}

void destroy(void* kernel) { delete static_cast<Attributes*>(kernel); }

// Reads an array and its shape.
bool read_array(TF_OpKernelContext* context, int index, Role role, const Status& status, Tensor* tensor, Shape* shape) {
  if (!read_input(context, index, status, tensor)) return false;
  *shape = shape_of(*tensor);
  return shape->size() == 4 || status.refuse(std::string(kRoleNames[role]) + " of rank " +
                                             std::to_string(shape->size()) + ": must have rank 4");
}

// Reads the shape of what a gradient belongs to.
bool read_shape(TF_OpKernelContext* context, const Status& status, Shape* shape) {
  Tensor tensor;
  if (!read_input(context, 2, status, &tensor)) return false;
  if (TF_NumDims(tensor.get()) != 1 || TF_Dim(tensor.get(), 0) != 4) {
    return status.refuse("the third argument must be a shape: four integers");
  }
  const auto* sizes = static_cast<const int32_t*>(TF_TensorData(tensor.get()));
  shape->assign(sizes, sizes + 4);
  return true;
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
bool resolve(GwPass pass, const Attributes& attributes, Shape* shapes, const Status& status, GwConvolution* c) {
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

// Reads what follows a forward pass: after inputs and kernel, the bias and the residual that are given.
bool read_extra(TF_OpKernelContext* context, int index, const char* name, const Shape& shape, const Status& status,
                Tensor* tensor) {
  if (!read_input(context, index, status, tensor)) return false;
  const Shape found = shape_of(*tensor);
  return found == shape ||
         status.refuse(std::string(name) + " of shape " + text(found) + ": must be of shape " + text(shape));
}

bool run(GwPass pass, const Attributes& attributes, TF_OpKernelContext* context, const Status& status) {
  const Role* roles = kRoles[pass];
  Tensor a, b, bias, residual;
  Shape shapes[3];
  GwConvolution convolution;
  if (!read_array(context, 0, roles[0], status, &a, &shapes[roles[0]]) ||
      !read_array(context, 1, roles[1], status, &b, &shapes[roles[1]]) ||
      (pass != GW_FORWARD && !read_shape(context, status, &shapes[roles[2]])) ||
      !resolve(pass, attributes, shapes, status, &convolution) ||
      (attributes.biases && !read_extra(context, 2, "bias", {convolution.out_channels}, status, &bias)) ||
      (attributes.residuals &&
       !read_extra(context, attributes.biases ? 3 : 2, "residual", shapes[kOutputs], status, &residual))) {
    return false;
  }
  GwFusion fusion{};
  fusion.bias = bias ? floats(bias) : nullptr, fusion.residual = residual ? floats(residual) : nullptr;
  fusion.activation = attributes.activation;
  const Tensor out = allocate(context, 0, shapes[roles[2]], status);
  return status.is_ok() && status.accept(gw_convolve(pass, &convolution, floats(a), floats(b), floats(out),
                                                     pass == GW_FORWARD ? &fusion : nullptr, nullptr, nullptr));
}

template <GwPass pass>
void compute(void* kernel, TF_OpKernelContext* context) {
  answer(context, kSubject,
         [=](const Status& status) { return run(pass, *static_cast<Attributes*>(kernel), context, status); });
}

template <GwPass pass, bool is_fused = false>
void add(const char* name, Operation::Texts inputs, const char* output) {
  std::vector<const char*> attributes{"groups: int", "strides: list(int)", "dilations: list(int)",
                                      "padding: list(int)"};
  if (is_fused) attributes.insert(attributes.end(), {"activation: int", "biases: int >= 0", "residuals: int >= 0"});
  register_operation({name, std::move(inputs), {output}, attributes, create<is_fused>, compute<pass>, destroy});
}

// Runs when TensorFlow loads the library.
const bool registered = [] {
  add<GW_FORWARD>("GroupwiseConv2D", {"inputs: float", "kernel: float"}, "outputs: float");
  add<GW_FORWARD, true>("GroupwiseFusedConv2D",
                        {"inputs: float", "kernel: float", "bias: biases * float", "residual: residuals * float"},
                        "outputs: float");
  add<GW_INPUT_GRADIENT>("GroupwiseConv2DInputGradient", {"gradient: float", "kernel: float", "shape: int32"},
                         "input_gradient: float");
  add<GW_KERNEL_GRADIENT>("GroupwiseConv2DKernelGradient", {"inputs: float", "gradient: float", "shape: int32"},
                          "kernel_gradient: float");
  return true;
}();

}  // namespace
