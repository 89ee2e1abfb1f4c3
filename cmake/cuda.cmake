# What orrery::cuda and orrery::nccl are, here and in the installed package: the headers, and the CUDA runtime or NCCL.

# CMake 3.25 does not know C++20 for nvcc, and drops CMAKE_CUDA_STANDARD 20 without a word.
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()

function(orrery_use_cuda target)
  target_link_libraries(${target} INTERFACE orrery::orrery CUDA::cudart)
  # Device code calls the library's constexpr functions.
  target_compile_options(${target} INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
endfunction()

# NCCL has no package of its own. Sets ORRERY_NCCL_INCLUDE_DIR and ORRERY_NCCL_LIBRARY, to be given by hand where they
# are neither beside the CUDA toolkit nor where the system looks.
macro(orrery_find_nccl)
  find_path(ORRERY_NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  find_library(ORRERY_NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR})
endmacro()

function(orrery_use_nccl target)
  target_link_libraries(${target} INTERFACE orrery::cuda ${ORRERY_NCCL_LIBRARY})
  target_include_directories(${target} SYSTEM INTERFACE ${ORRERY_NCCL_INCLUDE_DIR})
endfunction()
