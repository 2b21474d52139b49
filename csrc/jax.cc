// The core's three passes as handlers of XLA's foreign function interface, on XLA's own threads.
//
// Arguments: the two arrays of the pass; forward, a bias (rank 1) and a residual (rank 4) may follow, in any order.
// One attribute, "settings", eight int64: groups, strides, dilation, top and left padding, activation.
#include <string.h>

#include <memory>
#include <new>

#include "groupwise.h"
#include "loop.h"
#include "xla_ffi.h"

namespace {

XlaError* fail(const XlaApi* api, int32_t code, const char* message) {
  XlaErrorCreate request{XLA_SIZE(XlaErrorCreate, code), nullptr, message, code};
  return api->error_create(&request);
}

// XLA's threads for one call.
struct Pool {
  const XlaApi* api;
  XlaContext* context;

  int64_t threads() const {
    int64_t count = 1;
    XlaThreadCount request{XLA_SIZE(XlaThreadCount, count), nullptr, context, &count};
    return succeeded(api->thread_count(&request)) && count > 0 ? count : 1;
  }
  bool schedule(void (*task)(void*), void* data) const {
    XlaSchedule request{XLA_SIZE(XlaSchedule, data), nullptr, context, task, data};
    return succeeded(api->schedule(&request));
  }

 private:
  bool succeeded(XlaError* error) const {
    if (!error) return true;
    XlaErrorDestroy request{XLA_SIZE(XlaErrorDestroy, error), nullptr, error};
    api->error_destroy(&request);
    return false;
  }
};

using SharedLoop = std::shared_ptr<GwLoop>;

void help(void* data) {
  const std::unique_ptr<SharedLoop> loop(static_cast<SharedLoop*>(data));
  (*loop)->drain();
}

// The calling thread may itself be one of XLA's: it draws tasks too, and never waits for one that has not started.
void run_on_pool(void* state, int64_t tasks, GwBody body, void* argument) {
  const Pool& pool = *static_cast<const Pool*>(state);
  const int64_t threads = pool.threads();
  const int64_t helpers = (threads < tasks ? threads : tasks) - 1;
  if (helpers < 1) {
    for (int64_t task = 0; task < tasks; ++task) body(argument, task);
    return;
  }
  const auto loop = std::make_shared<GwLoop>(tasks, body, argument);
  for (int64_t i = 0; i < helpers; ++i) {
    std::unique_ptr<SharedLoop> mine(new (std::nothrow) SharedLoop(loop));
    if (!mine || !pool.schedule(help, mine.get())) break;
    mine.release();
  }
  loop->drain();
  loop->wait();
}

// One call's arguments, as the core takes them.
struct Call {
  GwConvolution convolution;
  GwEpilogue epilogue;
  const float *a, *b;
  float* out;
};

const XlaBuffer* float_buffer(const XlaItems& items, int64_t index) {
  if (items.types[index] != XLA_BUFFER) return nullptr;
  const auto* buffer = static_cast<const XlaBuffer*>(items.items[index]);
  return buffer->type == XLA_TYPE_F32 ? buffer : nullptr;
}

const XlaBuffer* image_buffer(const XlaItems& items, int64_t index) {
  const XlaBuffer* buffer = float_buffer(items, index);
  return buffer && buffer->rank == 4 ? buffer : nullptr;
}

// The eight integers of the attribute "settings", or null.
const int64_t* find_settings(const XlaAttributes& attributes) {
  for (int64_t i = 0; i < attributes.size; ++i) {
    const XlaText& name = *attributes.names[i];
    if (attributes.types[i] != XLA_ATTRIBUTE_ARRAY) continue;
    if (name.size != 8 || memcmp(name.characters, "settings", 8)) continue;
    const auto& array = *static_cast<const XlaArray*>(attributes.items[i]);
    if (array.type == XLA_TYPE_S64 && array.size == 8) return static_cast<const int64_t*>(array.data);
  }
  return nullptr;
}

// Fills in the sizes from the three shapes; false where they contradict one another.
bool read_sizes(const int64_t* inputs, const int64_t* kernel, const int64_t* outputs, const int64_t* settings,
                GwConvolution* c) {
  *c = {inputs[0],   inputs[1],   inputs[2],   inputs[3],   outputs[1],  outputs[2],  outputs[3],  kernel[0],
        kernel[1],   settings[0], settings[1], settings[2], settings[3], settings[4], settings[5], settings[6]};
  return outputs[0] == inputs[0] && kernel[3] == outputs[3] && c->groups > 0 && inputs[3] % c->groups == 0 &&
         kernel[2] == inputs[3] / c->groups;
}

bool read_epilogue(const XlaItems& arguments, const int64_t* outputs, int64_t activation, GwEpilogue* epilogue) {
  *epilogue = {nullptr, nullptr, activation};
  for (int64_t i = 2; i < arguments.size; ++i) {
    const XlaBuffer* buffer = float_buffer(arguments, i);
    if (!buffer) return false;
    const bool is_bias = buffer->rank == 1 && buffer->dimensions[0] == outputs[3];
    if (!is_bias && (buffer->rank != 4 || memcmp(buffer->dimensions, outputs, 4 * sizeof *outputs))) return false;
    (is_bias ? epilogue->bias : epilogue->residual) = static_cast<const float*>(buffer->data);
  }
  return activation >= GW_LINEAR && activation <= GW_RELU6;
}

// Returns what is wrong with the call, or null. What is checked here guards memory; the core checks the rest.
const char* read_call(GwPass pass, const XlaCallFrame& frame, Call* call) {
  const XlaItems &arguments = frame.arguments, &results = frame.results;
  if (arguments.size < 2 || results.size != 1 || (pass != GW_FORWARD && arguments.size > 2)) {
    return "groupwise: the call has the wrong number of arguments or results";
  }
  const XlaBuffer *a = image_buffer(arguments, 0), *b = image_buffer(arguments, 1), *out = image_buffer(results, 0);
  const int64_t* settings = find_settings(frame.attributes);
  if (!a || !b || !out || !settings) return "groupwise: the call needs float32 arrays of rank 4 and its settings";
  const XlaBuffer* inputs = pass == GW_INPUT_GRADIENT ? out : a;
  const XlaBuffer* kernel = pass == GW_KERNEL_GRADIENT ? out : b;
  const XlaBuffer* outputs = pass == GW_FORWARD ? out : pass == GW_INPUT_GRADIENT ? a : b;
  if (!read_sizes(inputs->dimensions, kernel->dimensions, outputs->dimensions, settings, &call->convolution)) {
    return "groupwise: the shapes of inputs, kernel and outputs contradict one another";
  }
  if (!read_epilogue(arguments, outputs->dimensions, settings[7], &call->epilogue)) {
    return "groupwise: the bias, residual or activation does not fit the outputs";
  }
  call->a = static_cast<const float*>(a->data);
  call->b = static_cast<const float*>(b->data);
  call->out = static_cast<float*>(out->data);
  return nullptr;
}

// Says which version this handler is of: XLA's own, within the range that our declarations hold for. XLA of the oldest
// version passes no `api` here.
XlaError* answer_metadata(const XlaApi* api, const XlaExtension* extension) {
  int minor = api ? api->version.minor_version : XLA_OLDEST_VERSION_MINOR;
  if (minor < XLA_OLDEST_VERSION_MINOR) minor = XLA_OLDEST_VERSION_MINOR;
  if (minor > XLA_NEWEST_VERSION_MINOR) minor = XLA_NEWEST_VERSION_MINOR;
  XlaMetadata* metadata = reinterpret_cast<const XlaMetadataExtension*>(extension)->metadata;
  metadata->version = {XLA_SIZE(XlaVersion, minor_version), nullptr, XLA_VERSION_MAJOR, minor};
  metadata->traits = 0;
  return nullptr;
}

XlaError* handle(GwPass pass, const XlaCallFrame* frame) {
  const XlaExtension* extension = frame->extensions;
  if (extension && extension->type == XLA_EXTENSION_METADATA) return answer_metadata(frame->api, extension);
  Call call;
  if (const char* mistake = read_call(pass, *frame, &call)) {
    return fail(frame->api, XLA_ERROR_INVALID_ARGUMENT, mistake);
  }
  Pool pool{frame->api, frame->context};
  const GwExecutor executor{run_on_pool, &pool, pool.threads()};
  const GwEpilogue* epilogue = pass == GW_FORWARD ? &call.epilogue : nullptr;
  switch (gw_convolve(pass, &call.convolution, call.a, call.b, call.out, epilogue, &executor, nullptr)) {
    case GW_OK:
      return nullptr;
    case GW_OUT_OF_MEMORY:
      return fail(frame->api, XLA_ERROR_RESOURCE_EXHAUSTED, "groupwise: out of memory");
    case GW_UNSUPPORTED:
      return fail(frame->api, XLA_ERROR_UNIMPLEMENTED, "groupwise: no kernel computes this convolution");
    default:
      return fail(frame->api, XLA_ERROR_INVALID_ARGUMENT, "groupwise: the convolution's sizes are invalid");
  }
}

XlaError* guarded(GwPass pass, const XlaCallFrame* frame) {
  try {
    return handle(pass, frame);
  } catch (const std::bad_alloc&) {
    return fail(frame->api, XLA_ERROR_RESOURCE_EXHAUSTED, "groupwise: out of memory");
  }
}

}  // namespace

extern "C" {
GW_PUBLIC XlaError* gw_jax_forward(XlaCallFrame* frame) { return guarded(GW_FORWARD, frame); }
GW_PUBLIC XlaError* gw_jax_input_gradient(XlaCallFrame* frame) { return guarded(GW_INPUT_GRADIENT, frame); }
GW_PUBLIC XlaError* gw_jax_kernel_gradient(XlaCallFrame* frame) { return guarded(GW_KERNEL_GRADIENT, frame); }
}
