// The part of XLA's foreign function interface (its C API) that csrc/jax*.cc use, declared anew: plain structs whose
// sizes, offsets and values tests/core/xla_ffi.cc compares with the headers of the installed jaxlib.
//
// It holds for the versions 0.1 (jaxlib 0.6.0) to 0.3 (jaxlib 0.10.2): what changed between them is not declared here.
// XLA takes a handler of an older version than its own as long as it supports that one, and of a newer version never:
// registered before XLA's CPU has started, such a handler keeps it from starting.
#pragma once
#include <stddef.h>
#include <stdint.h>

extern "C" {

enum { XLA_VERSION_MAJOR = 0, XLA_OLDEST_VERSION_MINOR = 1, XLA_NEWEST_VERSION_MINOR = 3 };

enum { XLA_EXTENSION_METADATA = 1 };
enum { XLA_ERROR_INVALID_ARGUMENT = 3, XLA_ERROR_RESOURCE_EXHAUSTED = 8, XLA_ERROR_UNIMPLEMENTED = 12 };
enum { XLA_TYPE_S64 = 5, XLA_TYPE_U8 = 6, XLA_TYPE_F32 = 11, XLA_TYPE_BF16 = 16 };
// A buffer is of the same type among the arguments and the results.
enum { XLA_BUFFER = 1, XLA_ATTRIBUTE_ARRAY = 1 };

typedef struct XlaError XlaError;
typedef struct XlaContext XlaContext;

typedef struct XlaExtension {
  size_t struct_size;
  int32_t type;
  struct XlaExtension* next;
} XlaExtension;

typedef struct XlaVersion {
  size_t struct_size;
  XlaExtension* extensions;
  int major_version, minor_version;
} XlaVersion;

// What XLA asks a handler for before it first calls it; later versions have more fields.
typedef struct XlaMetadata {
  size_t struct_size;
  XlaVersion version;
  uint32_t traits;
} XlaMetadata;

typedef struct XlaMetadataExtension {
  XlaExtension base;
  XlaMetadata* metadata;
} XlaMetadataExtension;

typedef struct XlaBuffer {
  size_t struct_size;
  XlaExtension* extensions;
  int32_t type;
  void* data;
  int64_t rank;
  int64_t* dimensions;
} XlaBuffer;

// The arguments or the results of a call; `types` says what each item points to.
typedef struct XlaItems {
  size_t struct_size;
  XlaExtension* extensions;
  int64_t size;
  int32_t* types;
  void** items;
} XlaItems;

typedef struct XlaText {
  const char* characters;
  size_t size;
} XlaText;

typedef struct XlaArray {
  int32_t type;
  size_t size;
  void* data;
} XlaArray;

typedef struct XlaAttributes {
  size_t struct_size;
  XlaExtension* extensions;
  int64_t size;
  int32_t* types;
  XlaText** names;
  void** items;
} XlaAttributes;

typedef struct XlaErrorCreate {
  size_t struct_size;
  XlaExtension* extensions;
  const char* message;
  int32_t code;
} XlaErrorCreate;

typedef struct XlaErrorDestroy {
  size_t struct_size;
  XlaExtension* extensions;
  XlaError* error;
} XlaErrorDestroy;

typedef struct XlaSchedule {
  size_t struct_size;
  XlaExtension* extensions;
  XlaContext* context;
  void (*task)(void* data);
  void* data;
} XlaSchedule;

typedef struct XlaThreadCount {
  size_t struct_size;
  XlaExtension* extensions;
  XlaContext* context;
  int64_t* count;
} XlaThreadCount;

// XLA's functions; more follow.
typedef struct XlaApi {
  size_t struct_size;
  XlaExtension* extensions;
  XlaVersion version;
  const void* internal;
  XlaError* (*error_create)(XlaErrorCreate*);
  void (*error_message)(void);
  void (*error_destroy)(XlaErrorDestroy*);
  void (*not_used[8])(void);
  XlaError* (*schedule)(XlaSchedule*);
  XlaError* (*thread_count)(XlaThreadCount*);
} XlaApi;

// One call of a handler; a field that handlers may fill in follows.
typedef struct XlaCallFrame {
  size_t struct_size;
  XlaExtension* extensions;
  const XlaApi* api;
  XlaContext* context;
  int32_t stage;
  XlaItems arguments, results;
  XlaAttributes attributes;
} XlaCallFrame;
}

// The size that XLA expects in a struct's first field: up to the end of its last field, without the padding after it.
#define XLA_SIZE(type, last_field) (offsetof(type, last_field) + sizeof(((type*)0)->last_field))
