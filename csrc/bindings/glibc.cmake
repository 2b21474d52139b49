# Libraries for wheels: built on a newer system, they load where glibc is 2.17 or newer. libstdc++ is linked into them. Since
# glibc 2.34 the functions of threads are libc's, under a new version: a stub of the libpthread before it, with their
# first version, stands in for them at link time. No stub is installed: newer systems have a libpthread for this too.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(first_version GLIBC_2.17)
else()
  set(first_version GLIBC_2.2.5)
endif()
set(names pthread_create pthread_detach pthread_join pthread_mutex_trylock pthread_once pthread_key_create
  __pthread_key_create pthread_key_delete pthread_getspecific pthread_setspecific)
list(TRANSFORM names REPLACE "(.+)" "extern \"C\" void \\1() {}\n" OUTPUT_VARIABLE functions)
list(JOIN functions "" functions)
list(JOIN names "; " names)
set(stub_folder ${CMAKE_CURRENT_BINARY_DIR}/pthread_stub)
file(GENERATE OUTPUT ${stub_folder}/stub.cc CONTENT "${functions}")
file(GENERATE OUTPUT ${stub_folder}/versions CONTENT "${first_version} { global: ${names}; local: *; };\n")
add_library(pthread_stub SHARED ${stub_folder}/stub.cc)
# What compilers know of these functions is not meant for a stub.
target_compile_options(pthread_stub PRIVATE -w -fno-builtin)
set_target_properties(pthread_stub PROPERTIES
  OUTPUT_NAME pthread NO_SONAME ON CXX_VISIBILITY_PRESET default LIBRARY_OUTPUT_DIRECTORY ${stub_folder})
target_link_options(pthread_stub PRIVATE
  LINKER:-soname,libpthread.so.0 LINKER:--version-script=${stub_folder}/versions)
foreach(library groupwise_core groupwise_jax groupwise_tensorflow)
  target_sources(${library} PRIVATE csrc/bindings/glibc.cc)
  target_link_libraries(${library} PRIVATE pthread_stub)
  target_link_options(${library} PRIVATE -static-libstdc++ LINKER:--exclude-libs,ALL LINKER:--gc-sections LINKER:-s)
endforeach()
