# What orrery::cuda, orrery::nccl and orrery::cudnn are, here and in the installed package: the headers, and the CUDA
# runtime, NCCL or cuDNN.

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

# cuDNN and the headers of cudnn-frontend, its interface for C++ (MIT; from NVIDIA's repository, or the include folder of
# the Python package nvidia-cudnn-frontend). Sets ORRERY_CUDNN_INCLUDE_DIR, ORRERY_CUDNN_LIBRARY and
# ORRERY_CUDNN_FRONTEND_INCLUDE_DIR, to be given by hand as those of NCCL.
macro(orrery_find_cudnn)
  find_path(ORRERY_CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  find_library(ORRERY_CUDNN_LIBRARY cudnn HINTS ${CUDAToolkit_LIBRARY_DIR})
  if(ORRERY_CUDNN_INCLUDE_DIR AND ORRERY_CUDNN_LIBRARY AND NOT ORRERY_CUDNN_FRONTEND_INCLUDE_DIR)
    find_package(cudnn_frontend QUIET)
    find_path(ORRERY_CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h HINTS ${cudnn_frontend_ROOT}/include
                                                                       ${CUDAToolkit_INCLUDE_DIRS})
  endif()
endmacro()

function(orrery_use_cudnn target)
  target_link_libraries(${target} INTERFACE orrery::cuda ${ORRERY_CUDNN_LIBRARY} CUDA::nvrtc ${CMAKE_DL_LIBS})
  target_include_directories(${target} SYSTEM INTERFACE ${ORRERY_CUDNN_INCLUDE_DIR} ${ORRERY_CUDNN_FRONTEND_INCLUDE_DIR})
endfunction()
