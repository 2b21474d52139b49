// Compiles where csrc/bindings/xla_ffi.h declares what the jaxlib at hand does: sizes, offsets, values and signatures.
#include "xla_ffi.h"

#include <type_traits>

#include "xla/ffi/api/c_api.h"

#define SAME_FIELD(ours, field, theirs, their_field)                                                  \
  static_assert(offsetof(ours, field) == offsetof(theirs, their_field), #ours "." #field ": offset"); \
  static_assert(sizeof(ours::field) == sizeof(theirs::their_field), #ours "." #field ": size")
#define SAME_SIZE(ours, last_field, theirs)                      \
  static_assert(sizeof(ours) == sizeof(theirs), #ours ": size"); \
  static_assert(XLA_SIZE(ours, last_field) == size_t{theirs##_STRUCT_SIZE}, #ours ": size it tells")
#define SAME_HEAD(ours, theirs)                       \
  SAME_FIELD(ours, struct_size, theirs, struct_size); \
  SAME_FIELD(ours, extensions, theirs, extension_start)
#define SAME_VALUE(ours, theirs) static_assert(int{ours} == int{theirs}, #ours ": value")
#define SAME_SIGNATURE(theirs, ...) static_assert(std::is_same<theirs, __VA_ARGS__>::value, #theirs ": signature")

static_assert(XLA_FFI_API_MAJOR == XLA_VERSION_MAJOR && XLA_FFI_API_MINOR >= XLA_OLDEST_VERSION_MINOR, "version");

SAME_VALUE(XLA_EXTENSION_METADATA, XLA_FFI_Extension_Metadata);
SAME_VALUE(XLA_ERROR_INVALID_ARGUMENT, XLA_FFI_Error_Code_INVALID_ARGUMENT);
SAME_VALUE(XLA_ERROR_RESOURCE_EXHAUSTED, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
SAME_VALUE(XLA_ERROR_UNIMPLEMENTED, XLA_FFI_Error_Code_UNIMPLEMENTED);
SAME_VALUE(XLA_TYPE_S64, XLA_FFI_DataType_S64);
SAME_VALUE(XLA_TYPE_U8, XLA_FFI_DataType_U8);
SAME_VALUE(XLA_TYPE_F32, XLA_FFI_DataType_F32);
SAME_VALUE(XLA_TYPE_BF16, XLA_FFI_DataType_BF16);
SAME_VALUE(XLA_BUFFER, XLA_FFI_ArgType_BUFFER);
SAME_VALUE(XLA_BUFFER, XLA_FFI_RetType_BUFFER);
SAME_VALUE(XLA_ATTRIBUTE_ARRAY, XLA_FFI_AttrType_ARRAY);

SAME_SIZE(XlaExtension, next, XLA_FFI_Extension_Base);
SAME_FIELD(XlaExtension, struct_size, XLA_FFI_Extension_Base, struct_size);
SAME_FIELD(XlaExtension, type, XLA_FFI_Extension_Base, type);
SAME_FIELD(XlaExtension, next, XLA_FFI_Extension_Base, next);

SAME_SIZE(XlaVersion, minor_version, XLA_FFI_Api_Version);
SAME_HEAD(XlaVersion, XLA_FFI_Api_Version);
SAME_FIELD(XlaVersion, major_version, XLA_FFI_Api_Version, major_version);
SAME_FIELD(XlaVersion, minor_version, XLA_FFI_Api_Version, minor_version);

// Theirs may have more fields after ours.
static_assert(XLA_SIZE(XlaMetadata, traits) <= XLA_FFI_Metadata_STRUCT_SIZE, "XlaMetadata: size");
SAME_FIELD(XlaMetadata, struct_size, XLA_FFI_Metadata, struct_size);
SAME_FIELD(XlaMetadata, version, XLA_FFI_Metadata, api_version);
SAME_FIELD(XlaMetadata, traits, XLA_FFI_Metadata, traits);

SAME_SIZE(XlaMetadataExtension, metadata, XLA_FFI_Metadata_Extension);
SAME_FIELD(XlaMetadataExtension, base, XLA_FFI_Metadata_Extension, extension_base);
SAME_FIELD(XlaMetadataExtension, metadata, XLA_FFI_Metadata_Extension, metadata);

SAME_SIZE(XlaBuffer, dimensions, XLA_FFI_Buffer);
SAME_HEAD(XlaBuffer, XLA_FFI_Buffer);
SAME_FIELD(XlaBuffer, type, XLA_FFI_Buffer, dtype);
SAME_FIELD(XlaBuffer, data, XLA_FFI_Buffer, data);
SAME_FIELD(XlaBuffer, rank, XLA_FFI_Buffer, rank);
SAME_FIELD(XlaBuffer, dimensions, XLA_FFI_Buffer, dims);
static_assert(std::is_same<decltype(XlaBuffer::dimensions), decltype(XLA_FFI_Buffer::dims)>::value, "dimensions");

SAME_SIZE(XlaItems, items, XLA_FFI_Args);
SAME_HEAD(XlaItems, XLA_FFI_Args);
SAME_FIELD(XlaItems, size, XLA_FFI_Args, size);
SAME_FIELD(XlaItems, types, XLA_FFI_Args, types);
SAME_FIELD(XlaItems, items, XLA_FFI_Args, args);
static_assert(sizeof *XlaItems::types == sizeof *XLA_FFI_Args::types, "types");

SAME_SIZE(XlaItems, items, XLA_FFI_Rets);
SAME_HEAD(XlaItems, XLA_FFI_Rets);
SAME_FIELD(XlaItems, size, XLA_FFI_Rets, size);
SAME_FIELD(XlaItems, types, XLA_FFI_Rets, types);
SAME_FIELD(XlaItems, items, XLA_FFI_Rets, rets);
static_assert(sizeof *XlaItems::types == sizeof *XLA_FFI_Rets::types, "types");

static_assert(sizeof(XlaText) == sizeof(XLA_FFI_ByteSpan), "XlaText: size");
SAME_FIELD(XlaText, characters, XLA_FFI_ByteSpan, ptr);
SAME_FIELD(XlaText, size, XLA_FFI_ByteSpan, len);

static_assert(sizeof(XlaArray) == sizeof(XLA_FFI_Array), "XlaArray: size");
SAME_FIELD(XlaArray, type, XLA_FFI_Array, dtype);
SAME_FIELD(XlaArray, size, XLA_FFI_Array, size);
SAME_FIELD(XlaArray, data, XLA_FFI_Array, data);

SAME_SIZE(XlaAttributes, items, XLA_FFI_Attrs);
SAME_HEAD(XlaAttributes, XLA_FFI_Attrs);
SAME_FIELD(XlaAttributes, size, XLA_FFI_Attrs, size);
SAME_FIELD(XlaAttributes, types, XLA_FFI_Attrs, types);
SAME_FIELD(XlaAttributes, names, XLA_FFI_Attrs, names);
SAME_FIELD(XlaAttributes, items, XLA_FFI_Attrs, attrs);
static_assert(sizeof *XlaAttributes::types == sizeof *XLA_FFI_Attrs::types, "types");

SAME_SIZE(XlaErrorCreate, code, XLA_FFI_Error_Create_Args);
SAME_HEAD(XlaErrorCreate, XLA_FFI_Error_Create_Args);
SAME_FIELD(XlaErrorCreate, message, XLA_FFI_Error_Create_Args, message);
SAME_FIELD(XlaErrorCreate, code, XLA_FFI_Error_Create_Args, errc);

SAME_SIZE(XlaErrorDestroy, error, XLA_FFI_Error_Destroy_Args);
SAME_HEAD(XlaErrorDestroy, XLA_FFI_Error_Destroy_Args);
SAME_FIELD(XlaErrorDestroy, error, XLA_FFI_Error_Destroy_Args, error);

SAME_SIZE(XlaSchedule, data, XLA_FFI_ThreadPool_Schedule_Args);
SAME_HEAD(XlaSchedule, XLA_FFI_ThreadPool_Schedule_Args);
SAME_FIELD(XlaSchedule, context, XLA_FFI_ThreadPool_Schedule_Args, ctx);
SAME_FIELD(XlaSchedule, task, XLA_FFI_ThreadPool_Schedule_Args, task);
SAME_FIELD(XlaSchedule, data, XLA_FFI_ThreadPool_Schedule_Args, data);

SAME_SIZE(XlaThreadCount, count, XLA_FFI_ThreadPool_NumThreads_Args);
SAME_HEAD(XlaThreadCount, XLA_FFI_ThreadPool_NumThreads_Args);
SAME_FIELD(XlaThreadCount, context, XLA_FFI_ThreadPool_NumThreads_Args, ctx);
SAME_FIELD(XlaThreadCount, count, XLA_FFI_ThreadPool_NumThreads_Args, num_threads);
static_assert(sizeof *XlaThreadCount::count == sizeof *XLA_FFI_ThreadPool_NumThreads_Args::num_threads, "count");

SAME_HEAD(XlaApi, XLA_FFI_Api);
SAME_FIELD(XlaApi, version, XLA_FFI_Api, api_version);
SAME_FIELD(XlaApi, error_create, XLA_FFI_Api, XLA_FFI_Error_Create);
SAME_FIELD(XlaApi, error_destroy, XLA_FFI_Api, XLA_FFI_Error_Destroy);
SAME_FIELD(XlaApi, schedule, XLA_FFI_Api, XLA_FFI_ThreadPool_Schedule);
SAME_FIELD(XlaApi, thread_count, XLA_FFI_Api, XLA_FFI_ThreadPool_NumThreads);

SAME_HEAD(XlaCallFrame, XLA_FFI_CallFrame);
SAME_FIELD(XlaCallFrame, api, XLA_FFI_CallFrame, api);
SAME_FIELD(XlaCallFrame, context, XLA_FFI_CallFrame, ctx);
SAME_FIELD(XlaCallFrame, stage, XLA_FFI_CallFrame, stage);
SAME_FIELD(XlaCallFrame, arguments, XLA_FFI_CallFrame, args);
SAME_FIELD(XlaCallFrame, results, XLA_FFI_CallFrame, rets);
SAME_FIELD(XlaCallFrame, attributes, XLA_FFI_CallFrame, attrs);

SAME_SIGNATURE(XLA_FFI_Handler, XLA_FFI_Error*(XLA_FFI_CallFrame*));
SAME_SIGNATURE(XLA_FFI_Task, void(void*));
SAME_SIGNATURE(XLA_FFI_Error_Create, XLA_FFI_Error*(XLA_FFI_Error_Create_Args*));
SAME_SIGNATURE(XLA_FFI_Error_Destroy, void(XLA_FFI_Error_Destroy_Args*));
SAME_SIGNATURE(XLA_FFI_ThreadPool_Schedule, XLA_FFI_Error*(XLA_FFI_ThreadPool_Schedule_Args*));
SAME_SIGNATURE(XLA_FFI_ThreadPool_NumThreads, XLA_FFI_Error*(XLA_FFI_ThreadPool_NumThreads_Args*));
