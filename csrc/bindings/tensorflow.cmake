# TensorFlow's binding, built without TensorFlow: a stub library with its SONAME and the functions that tensorflow_c.h
# declares stands in for it at link time. The stub is not installed: the TensorFlow that loads the binding is already in
# the process.
add_library(groupwise_tensorflow SHARED csrc/bindings/tensorflow.cc csrc/bindings/tensorflow_link.cc
  csrc/bindings/tensorflow_norm.cc csrc/bindings/tensorflow_separable.cc csrc/bindings/tensorflow_shuffle.cc)
target_link_libraries(groupwise_tensorflow PRIVATE groupwise_core)
if(APPLE)
  target_link_options(groupwise_tensorflow PRIVATE LINKER:-undefined,dynamic_lookup)
else()
  set(stub_folder ${CMAKE_CURRENT_BINARY_DIR}/tensorflow_stub)
  file(READ ${CMAKE_CURRENT_SOURCE_DIR}/csrc/bindings/tensorflow_c.h declarations)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS csrc/bindings/tensorflow_c.h)
  string(REGEX MATCHALL "TF_[A-Za-z0-9_]+\\(" names "${declarations}")
  string(REGEX REPLACE "(TF_[A-Za-z0-9_]+\\();?" "extern \"C\" void \\1) {}\n" stub "${names}")
  file(GENERATE OUTPUT ${stub_folder}/stub.cc CONTENT "${stub}")
  add_library(tensorflow_stub SHARED ${stub_folder}/stub.cc)
  # Apart from the other libraries, so that no loader finds it beside them.
  set_target_properties(tensorflow_stub PROPERTIES
    OUTPUT_NAME tensorflow_framework SUFFIX .so.2 NO_SONAME ON CXX_VISIBILITY_PRESET default
    LIBRARY_OUTPUT_DIRECTORY ${stub_folder})
  target_link_options(tensorflow_stub PRIVATE LINKER:-soname,libtensorflow_framework.so.2)
  target_link_libraries(groupwise_tensorflow PRIVATE tensorflow_stub)
endif()
install(TARGETS groupwise_tensorflow LIBRARY DESTINATION groupwise)
