// What TensorFlow's operations over the core share: errors, arrays, how an operation is registered.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "groupwise.h"
#include "tensorflow_c.h"

namespace {

using Shape = std::vector<int64_t>;

class Status {
 public:
  // `subject` begins what is refused.
  explicit Status(const char* subject) : subject_(subject), status_(TF_NewStatus()) {}
  ~Status() { TF_DeleteStatus(status_); }
  Status(const Status&) = delete;
  operator TF_Status*() const { return status_; }
  bool is_ok() const { return TF_GetCode(status_) == TF_OK; }
  // Always false, for `return status.refuse(...)`.
  bool refuse(const std::string& message, TF_Code code = TF_INVALID_ARGUMENT) const {
    TF_SetStatus(status_, code, (std::string(subject_) + ": " + message).c_str());
    return false;
  }
  // Whether the core has done its work: a GwStatus.
  bool accept(int outcome) const {
    if (outcome == GW_OUT_OF_MEMORY) return refuse("no memory is left", TF_RESOURCE_EXHAUSTED);
    return outcome == GW_OK || refuse("the core refuses, status " + std::to_string(outcome), TF_INTERNAL);
  }

 private:
  const char* subject_;
  TF_Status* status_;
};

// Runs a kernel's body(status), which is true where all went well, and tells TensorFlow what did not; memory that is
// lacking included, for nothing may be thrown through its C interface.
template <typename Body>
void answer(TF_OpKernelContext* context, const char* subject, const Body& body) {
  const Status status(subject);
  bool is_done = false;
  try {
    is_done = body(status);
  } catch (const std::bad_alloc&) {
    TF_SetStatus(status, TF_RESOURCE_EXHAUSTED, "groupwise: no memory is left");
  }
  if (!is_done) TF_OpKernelContext_Failure(context, status);
}

struct DeleteTensor {
  void operator()(TF_Tensor* tensor) const { TF_DeleteTensor(tensor); }
};
using Tensor = std::unique_ptr<TF_Tensor, DeleteTensor>;

inline Shape shape_of(const Tensor& tensor) {
  Shape shape;
  for (int axis = 0; axis < TF_NumDims(tensor.get()); ++axis) shape.push_back(TF_Dim(tensor.get(), axis));
  return shape;
}

inline std::string text(const Shape& shape) {
  std::string result;
  for (int64_t size : shape) result += (result.empty() ? "" : ", ") + std::to_string(size);
  return "(" + result + ")";
}

inline bool read_input(TF_OpKernelContext* context, int index, const Status& status, Tensor* tensor) {
  TF_Tensor* found = nullptr;
  TF_GetInput(context, index, &found, status);
  tensor->reset(found);
  return status.is_ok();
}

// A float32 result; empty where the status is no longer good.
inline Tensor allocate(TF_OpKernelContext* context, int index, const Shape& shape, const Status& status) {
  size_t bytes = sizeof(float);
  for (int64_t size : shape) bytes *= static_cast<size_t>(size);
  return Tensor(TF_AllocateOutput(context, index, TF_FLOAT, shape.data(), int(shape.size()), bytes, status));
}

// The arrays of one call: its arguments in their order and its results in theirs, which live as long as this does.
// After a mistake all are null, and the status says what it was.
class Arrays {
 public:
  Arrays(TF_OpKernelContext* context, const Status& status) : status(status), context_(context) {}

  // An argument of any shape, which is told.
  template <typename Element = float>
  Element* argument(Shape* shape) {
    Tensor tensor;
    if (!status.is_ok() || !read_input(context_, next_argument_++, status, &tensor)) return nullptr;
    *shape = shape_of(tensor);
    return keep<Element>(std::move(tensor));
  }
  float* argument(const char* name, const Shape& shape) {
    Shape found;
    float* array = argument(&found);
    if (!status.is_ok() || found == shape) return array;
    status.refuse(std::string(name) + " of shape " + text(found) + ": must be of shape " + text(shape));
    return nullptr;
  }
  float* result(const Shape& shape) {
    if (!status.is_ok()) return nullptr;
    Tensor tensor = allocate(context_, next_result_++, shape, status);
    return status.is_ok() ? keep<float>(std::move(tensor)) : nullptr;
  }

  const Status& status;

 private:
  template <typename Element>
  Element* keep(Tensor tensor) {
    kept_.push_back(std::move(tensor));
    return static_cast<Element*>(TF_TensorData(kept_.back().get()));
  }

  TF_OpKernelContext* context_;
  int next_argument_ = 0, next_result_ = 0;
  std::vector<Tensor> kept_;
};

// The C interface shows a shape function neither strides nor any input but the first: the caller sets static shapes.
inline void leave_shape_unknown(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeInferenceContextSetUnknownShape(context, status);
}

struct Operation {
  using Texts = std::vector<const char*>;

  const char* name;
  Texts inputs, outputs, attributes;
  GwCreate create;
  GwCompute compute;
  GwDestroy destroy;
};

// Only queues: TensorFlow reports what is wrong when it loads the library.
inline void register_operation(const Operation& operation) {
  const Status status(operation.name);
  TF_OpDefinitionBuilder* definition = TF_NewOpDefinitionBuilder(operation.name);
  for (const char* input : operation.inputs) TF_OpDefinitionBuilderAddInput(definition, input);
  for (const char* output : operation.outputs) TF_OpDefinitionBuilderAddOutput(definition, output);
  for (const char* attribute : operation.attributes) TF_OpDefinitionBuilderAddAttr(definition, attribute);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(definition, leave_shape_unknown);
  TF_RegisterOpDefinition(definition, status);
  TF_KernelBuilder* kernel =
      TF_NewKernelBuilder(operation.name, "CPU", operation.create, operation.compute, operation.destroy);
  TF_RegisterKernelBuilder(operation.name, kernel, status);
}

}  // namespace
