// Max pooling as handlers of XLA's foreign function interface.
//
// Forward: inputs -> outputs and, perhaps, their places. Gradient: outputs' gradient, places -> inputs' gradient.
// One attribute, "settings", six int64: the window's size, strides, top and left padding.
#include "jax_call.h"

namespace {

// One call's arguments, as the core takes them.
struct Call {
  GwConvolution sizes;
  GwElement element;
  const void* in;
  void* out;
  uint8_t* places;
};

const XlaBuffer* image_buffer(const XlaItems& items, int64_t index) {
  const XlaBuffer* narrow = find_buffer(items, index, XLA_TYPE_BF16, 4);
  return narrow ? narrow : find_buffer(items, index, XLA_TYPE_F32, 4);
}

bool same_shape(const XlaBuffer& a, const XlaBuffer& b) {
  return !memcmp(a.dimensions, b.dimensions, 4 * sizeof *a.dimensions);
}

// Returns what is wrong with the call, or null. What is checked here guards memory; the core checks the rest.
const char* read_call(bool forward, const XlaCallFrame& frame, Call* call) {
  const XlaItems &arguments = frame.arguments, &results = frame.results;
  const XlaItems& places_items = forward ? results : arguments;
  const bool has_places = places_items.size == 2;
  if ((forward ? arguments : results).size != 1 || (!has_places && (!forward || results.size != 1))) {
    return "groupwise: the call has the wrong number of arguments or results";
  }
  const XlaBuffer *in = image_buffer(arguments, 0), *out = image_buffer(results, 0);
  const XlaBuffer* places = has_places ? find_buffer(places_items, 1, XLA_TYPE_U8, 4) : nullptr;
  const int64_t* settings = find_settings(frame.attributes, 6);
  if (!in || !out || in->type != out->type || (has_places && !places) || !settings) {
    return "groupwise: the call needs float32 or bfloat16 arrays of rank 4, uint8 places and its settings";
  }
  const XlaBuffer &image = forward ? *in : *out, &maxima = forward ? *out : *in;
  const int64_t *before = image.dimensions, *after = maxima.dimensions, channels = before[3];
  if (before[0] != after[0] || channels != after[3] || (places && !same_shape(*places, maxima))) {
    return "groupwise: the shapes of inputs, outputs and places contradict one another";
  }
  call->sizes = {before[0],   before[1], before[2],   channels,    after[1], after[2], channels,    settings[0],
                 settings[1], channels,  settings[2], settings[3], 1,        1,        settings[4], settings[5]};
  call->element = in->type == XLA_TYPE_F32 ? GW_FLOAT32 : GW_BFLOAT16;
  call->in = in->data;
  call->out = out->data;
  call->places = places ? static_cast<uint8_t*>(places->data) : nullptr;
  return nullptr;
}

XlaError* handle(bool forward, const XlaCallFrame* frame) {
  return answer(frame, [=] {
    Call call;
    if (const char* mistake = read_call(forward, *frame, &call)) return refuse(frame, mistake);
    const Pool pool(*frame);
    const auto [sizes, element, in, out, places] = call;
    return report(frame, forward ? gw_max_pool(element, &sizes, in, out, places, &pool.executor)
                                 : gw_max_pool_gradient(element, &sizes, in, places, out, &pool.executor));
  });
}

}  // namespace

extern "C" {
GW_PUBLIC XlaError* gw_jax_max_pool(XlaCallFrame* frame) { return handle(true, frame); }
GW_PUBLIC XlaError* gw_jax_max_pool_gradient(XlaCallFrame* frame) { return handle(false, frame); }
}
