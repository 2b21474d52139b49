// What the handlers of XLA's foreign function interface share: XLA's threads, the settings, errors.
#pragma once
#include <string.h>

#include <memory>
#include <new>

#include "bindings/jax_memory.h"
#include "bindings/mapping.h"
#include "groupwise.h"
#include "threads/loop.h"
#include "xla_ffi.h"

namespace {

inline XlaError* fail(const XlaCallFrame* frame, int32_t code, const char* message) {
  XlaErrorCreate request{XLA_SIZE(XlaErrorCreate, code), nullptr, message, code};
  return frame->api->error_create(&request);
}

inline XlaError* refuse(const XlaCallFrame* frame, const char* message) {
  return fail(frame, XLA_ERROR_INVALID_ARGUMENT, message);
}

inline XlaError* report(const XlaCallFrame* frame, int status) {
  switch (status) {
    case GW_OK:
      return nullptr;
    case GW_OUT_OF_MEMORY:
      return fail(frame, XLA_ERROR_RESOURCE_EXHAUSTED, "groupwise: out of memory");
    case GW_UNSUPPORTED:
      return fail(frame, XLA_ERROR_UNIMPLEMENTED, "groupwise: no kernel computes this");
    default:
      return refuse(frame, "groupwise: the sizes are invalid");
  }
}

// XLA's threads for one call.
class Pool {
 public:
  explicit Pool(const XlaCallFrame& frame) : executor{run, this, 1}, api_(frame.api), context_(frame.context) {
    int64_t count = 1;
    XlaThreadCount request{XLA_SIZE(XlaThreadCount, count), nullptr, context_, &count};
    if (succeeded(api_->thread_count(&request)) && count > 0) executor.threads = count;
  }
  Pool(const Pool&) = delete;

  GwExecutor executor;

 private:
  using SharedLoop = std::shared_ptr<GwLoop>;

  static void run_alone(int64_t tasks, GwBody body, void* argument) {
    for (int64_t task = 0; task < tasks; ++task) body(argument, task);
  }

  // Null where there is no memory: nothing is thrown through the core.
  static SharedLoop make_loop(int64_t tasks, GwBody body, void* argument) {
    try {
      return std::make_shared<GwLoop>(tasks, body, argument);
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
  }

  static void help(void* data) {
    const std::unique_ptr<SharedLoop> loop(static_cast<SharedLoop*>(data));
    (*loop)->drain();
  }

  // The calling thread may itself be one of XLA's: it draws tasks too, and never waits for one that has not started.
  static void run(void* state, int64_t tasks, GwBody body, void* argument) {
    const Pool& pool = *static_cast<const Pool*>(state);
    const int64_t threads = pool.executor.threads, helpers = (threads < tasks ? threads : tasks) - 1;
    if (helpers < 1) return run_alone(tasks, body, argument);
    const SharedLoop loop = make_loop(tasks, body, argument);
    if (!loop) return run_alone(tasks, body, argument);
    for (int64_t i = 0; i < helpers; ++i) {
      std::unique_ptr<SharedLoop> mine(new (std::nothrow) SharedLoop(loop));
      if (!mine || !pool.schedule(help, mine.get())) break;
      mine.release();
    }
    loop->drain();
    loop->wait();
  }

  bool schedule(void (*task)(void*), void* data) const {
    XlaSchedule request{XLA_SIZE(XlaSchedule, data), nullptr, context_, task, data};
    return succeeded(api_->schedule(&request));
  }
  bool succeeded(XlaError* error) const {
    if (!error) return true;
    XlaErrorDestroy request{XLA_SIZE(XlaErrorDestroy, error), nullptr, error};
    api_->error_destroy(&request);
    return false;
  }

  const XlaApi* api_;
  XlaContext* context_;
};

// An argument's or result's array of this type and rank; null where it is another, or none.
inline const XlaBuffer* find_buffer(const XlaItems& items, int64_t index, int32_t type, int64_t rank) {
  if (index >= items.size || items.types[index] != XLA_BUFFER) return nullptr;
  const auto* buffer = static_cast<const XlaBuffer*>(items.items[index]);
  return buffer->type == type && buffer->rank == rank ? buffer : nullptr;
}

// The `count` integers of the attribute "settings", or null.
inline const int64_t* find_settings(const XlaAttributes& attributes, size_t count) {
  for (int64_t i = 0; i < attributes.size; ++i) {
    const XlaText& name = *attributes.names[i];
    if (attributes.types[i] != XLA_ATTRIBUTE_ARRAY) continue;
    if (name.size != 8 || memcmp(name.characters, "settings", 8) != 0) continue;
    const auto& array = *static_cast<const XlaArray*>(attributes.items[i]);
    if (array.type == XLA_TYPE_S64 && array.size == count) return static_cast<const int64_t*>(array.data);
  }
  return nullptr;
}

// Says which version this handler is of: XLA's own, within the range that our declarations hold for. XLA of the oldest
// version passes no `api` here.
inline XlaError* answer_metadata(const XlaApi* api, const XlaExtension* extension) {
  int minor = api ? api->version.minor_version : XLA_OLDEST_VERSION_MINOR;
  if (minor < XLA_OLDEST_VERSION_MINOR) minor = XLA_OLDEST_VERSION_MINOR;
  if (minor > XLA_NEWEST_VERSION_MINOR) minor = XLA_NEWEST_VERSION_MINOR;
  XlaMetadata* metadata = reinterpret_cast<const XlaMetadataExtension*>(extension)->metadata;
  metadata->version = {XLA_SIZE(XlaVersion, minor_version), nullptr, XLA_VERSION_MAJOR, minor};
  metadata->traits = 0;
  return nullptr;
}

inline void prepare_memory(const XlaApi& api, const XlaItems& results) {
  for (int64_t i = 0; i < results.size; ++i) {
    if (results.types[i] != XLA_BUFFER) continue;
    const auto& buffer = *static_cast<const XlaBuffer*>(results.items[i]);
    int64_t elements = 1;
    for (int64_t axis = 0; axis < buffer.rank; ++axis) elements *= buffer.dimensions[axis];
    if (elements < kManyElements) continue;
    gw_keep_memory_of(reinterpret_cast<void (*)(void)>(api.schedule));
    want_large_pages_around(buffer.data);
  }
}

// What a handler returns: the answer to XLA's question for its version, or handle(), memory that is lacking included.
template <typename Handle>
XlaError* answer(const XlaCallFrame* frame, const Handle& handle) {
  const XlaExtension* extension = frame->extensions;
  if (extension && extension->type == XLA_EXTENSION_METADATA) return answer_metadata(frame->api, extension);
  prepare_memory(*frame->api, frame->results);
  try {
    return handle();
  } catch (const std::bad_alloc&) {
    return report(frame, GW_OUT_OF_MEMORY);
  }
}

}  // namespace
