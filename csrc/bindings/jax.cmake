# JAX's binding, built without JAX: xla_ffi.h declares what it uses of XLA's C interface.
add_library(groupwise_jax SHARED csrc/bindings/jax.cc csrc/bindings/jax_link.cc csrc/bindings/jax_memory.cc
  csrc/bindings/jax_norm.cc csrc/bindings/jax_pool.cc csrc/bindings/jax_separable.cc)
target_link_libraries(groupwise_jax PRIVATE groupwise_core Threads::Threads)
if(NOT APPLE)
  # XLA's library goes on calling functions of it (jax_memory.cc).
  target_link_options(groupwise_jax PRIVATE LINKER:-z,nodelete)
endif()
install(TARGETS groupwise_jax LIBRARY DESTINATION groupwise)
