# The CUDA library: raw-pointer kernels by nvcc, torch glue by the C++ compiler. Built without a GPU; loaded
# only where torch was built for CUDA.
if(NOT DEFINED CMAKE_CUDA_FLAGS_RELEASE)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
endif()
list(TRANSFORM PARASAMPLE_CUDA_ARCHITECTURES APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
list(GET PARASAMPLE_CUDA_ARCHITECTURES -1 newest)
list(APPEND CMAKE_CUDA_ARCHITECTURES "${newest}-virtual")  # later devices compile this
# The runtime is linked in, so that no libcudart must be found beside torch's.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/*/*_bindings_cuda.cpp csrc/*/*.cu)
add_library(parasample_ops_cuda SHARED ${cuda_sources} ${checks})
target_compile_definitions(parasample_ops_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:USE_CUDA>)
target_compile_options(parasample_ops_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>)
target_include_directories(parasample_ops_cuda PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(parasample_ops_cuda PRIVATE torch_stable)
if(PARASAMPLE_CUDA_STUB)
  # A CPU torch has no libtorch_cuda to link against: a stub with the symbols used keeps --no-undefined honest.
  add_library(torch_cuda SHARED csrc/torch_cuda_stub.cpp)
  set_target_properties(torch_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/stub)
  target_link_libraries(torch_cuda PRIVATE torch_stable)
endif()
target_link_libraries(parasample_ops_cuda PRIVATE torch_cuda)
