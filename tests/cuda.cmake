# Tests that need the CUDA toolkit. Each source of the folders of CUDA is compiled by the host's compiler and runs without a GPU, on a double of
# the CUDA runtime (and of NCCL) in the place of the libraries: one executable, one ctest test each.

option(ORRERY_BUILD_GPU_TESTS "Build the tests that need a GPU, also where there is none" OFF)
add_custom_target(cuda_tests)

function(add_cuda_test name)
  add_test(NAME ${name} COMMAND ${ARGN})
  set_tests_properties(
    ${name}
    PROPERTIES LABELS cuda
               PROCESSORS 2
               TIMEOUT 300
               SKIP_RETURN_CODE 77
               FAIL_REGULAR_EXPRESSION "test cases: +0 ")
endfunction()

# A source's tests, as doctest filters them: also those of the headers of cases that it includes.
function(tests_of source filter)
  set(files "*/${source}")
  file(STRINGS ${source} lines REGEX "^#include \".*_cases\\.hpp\"")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "^.*/(.*)\"$" "\\1" header ${line})
    string(APPEND files ",*/${header}")
  endforeach()
  set(${filter} --source-file=${files} PARENT_SCOPE)
endfunction()

# The toolkit's headers without its library.
add_library(cuda_headers INTERFACE)
target_include_directories(cuda_headers SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})

set(sources "")
foreach(folder IN LISTS cuda_folders)
  file(GLOB more RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} CONFIGURE_DEPENDS ${folder}/*.cpp)
  list(APPEND sources ${more})
endforeach()
list(FILTER sources EXCLUDE REGEX "^kernel/cudnn/(engine|graphs)\\.cpp$") # need cuDNN itself: see below
if(TARGET orrery::nccl)
  target_include_directories(cuda_headers SYSTEM INTERFACE ${ORRERY_NCCL_INCLUDE_DIR})
else()
  list(FILTER sources EXCLUDE REGEX "nccl")
endif()
add_executable(test_cuda ${sources})
target_link_libraries(test_cuda PRIVATE test_main cuda_headers)
target_include_directories(test_cuda PRIVATE ${PROJECT_SOURCE_DIR}/bench ${PROJECT_SOURCE_DIR}/examples) # of programs
target_compile_options(test_cuda PRIVATE ${optimisation})
target_precompile_headers(test_cuda REUSE_FROM test_main)
add_dependencies(cuda_tests test_cuda)
foreach(source IN LISTS sources)
  cmake_path(REMOVE_EXTENSION source OUTPUT_VARIABLE name)
  string(REPLACE / . name ${name})
  if(NOT name MATCHES "double$")
    tests_of(${source} filter)
    add_cuda_test(${name} test_cuda --no-intro ${filter})
  endif()
endforeach()

# Headers: as those of the host, each alone and twice; .cuh files by nvcc, too.

file(GLOB_RECURSE headers RELATIVE ${include} CONFIGURE_DEPENDS ${include}/orrery/*.hpp ${include}/orrery/*.cuh)
list(FILTER headers INCLUDE REGEX ${cuda_headers})
if(NOT TARGET orrery::nccl)
  list(FILTER headers EXCLUDE REGEX "nccl")
endif()
# Includes cudnn-frontend, which takes compilers long: kernel/cudnn/engine.cpp is its test.
list(FILTER headers EXCLUDE REGEX "device_cudnn_graphs")
add_library(test_cuda_headers OBJECT)
target_link_libraries(test_cuda_headers PRIVATE orrery::orrery orrery_development cuda_headers)
target_compile_options(test_cuda_headers PRIVATE $<IF:$<COMPILE_LANGUAGE:CUDA>,--expt-relaxed-constexpr,-O0>)
set(kernels "")
foreach(header IN LISTS headers)
  set(line "#include <${header}>\n")
  file(CONFIGURE OUTPUT headers/${header}.cpp CONTENT "${line}${line}")
  target_sources(test_cuda_headers PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/headers/${header}.cpp)
  if(header MATCHES "cuh$")
    string(APPEND kernels "${line}${line}")
  endif()
endforeach()
add_dependencies(cuda_tests test_cuda_headers)

# The script that runs everything on a GPU, with scripts in the place of programs.
find_program(ORRERY_BASH bash)
if(ORRERY_BASH)
  add_cuda_test(gpu.on_gpu_steps ${ORRERY_BASH} ${CMAKE_CURRENT_SOURCE_DIR}/gpu/on_gpu_steps.sh)
endif()

# By nvcc, for GPUs: linked with the real libraries. Where there is no GPU these tests say so and are skipped.

if(CMAKE_CUDA_COMPILER)
  # Nobody runs them where there is no GPU, so there they are compiled as far as PTX, which takes half the time. That the
  # kernels can be assembled is what test_cuda_architectures sees.
  if(NOT EXISTS /dev/nvidiactl)
    set(CMAKE_CUDA_ARCHITECTURES 90a-virtual)
  endif()
  file(CONFIGURE OUTPUT headers/kernels.cu CONTENT "${kernels}")
  target_sources(test_cuda_headers PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/headers/kernels.cu)

  add_library(test_cuda_architectures OBJECT kernel/cuda/architectures.cu)
  target_link_libraries(test_cuda_architectures PRIVATE orrery::cuda orrery_development)
  set_target_properties(test_cuda_architectures PROPERTIES CUDA_ARCHITECTURES "80;90a;100")
  add_dependencies(cuda_tests test_cuda_architectures)

  # What nvcc makes of a kernel, disassembled.
  find_program(ORRERY_PYTHON python3)
  if(ORRERY_PYTHON)
    add_cuda_test(kernel.cuda.sass ${ORRERY_PYTHON} ${PROJECT_SOURCE_DIR}/bench/kernel/cuda/sass.py --check --nvcc
                  ${CMAKE_CUDA_COMPILER})
  endif()

  foreach(example device_graph nccl_by_file nccl_by_mpi train_devices)
    if(TARGET ${example})
      add_dependencies(cuda_tests ${example})
    endif()
  endforeach()
  if(TARGET device_graph)
    add_cuda_test(example.device_graph device_graph)
  endif()

  # Where there is no GPU they could only be skipped, and take nvcc as long as all else.
  set(for_gpu ${ORRERY_BUILD_GPU_TESTS})
  if(EXISTS /dev/nvidiactl)
    set(for_gpu ON)
  endif()

  file(GLOB sources RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} CONFIGURE_DEPENDS gpu/*.cu)
  add_executable(test_gpu gpu/main.cpp ${sources})
  target_include_directories(test_gpu PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(test_gpu PRIVATE orrery::cuda orrery_development doctest::doctest)
  if(for_gpu)
    add_dependencies(cuda_tests test_gpu)
    foreach(source IN LISTS sources)
      cmake_path(GET source STEM name)
      tests_of(${source} filter)
      add_cuda_test(gpu.${name} test_gpu --no-intro ${filter})
      set_tests_properties(gpu.${name} PROPERTIES RESOURCE_LOCK gpu)
    endforeach()
  endif()

  if(TARGET orrery::nccl)
    add_executable(test_gpu_nccl gpu/nccl/main.cu)
    target_include_directories(test_gpu_nccl PRIVATE ${PROJECT_SOURCE_DIR}/tests ${PROJECT_SOURCE_DIR}/examples)
    target_link_libraries(test_gpu_nccl PRIVATE orrery::cuda orrery::nccl orrery_development doctest::doctest)
    if(for_gpu)
      add_dependencies(cuda_tests test_gpu_nccl)
      add_cuda_test(gpu.nccl test_gpu_nccl --no-intro)
      add_cuda_test(gpu.nccl_processes test_gpu_nccl --processes 4)
      set_tests_properties(gpu.nccl gpu.nccl_processes PROPERTIES RESOURCE_LOCK gpu)
    endif()
  endif()
endif()

# cuDNN itself: what it says of the graphs that are made for it, which needs no GPU, since it is told of one, but a
# library of the driver, as the toolkit has a stub; and operators, by nvcc.

if(TARGET orrery::cudnn)
  add_library(cudnn_engine OBJECT kernel/cudnn/engine.cpp)
  target_include_directories(cudnn_engine PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(cudnn_engine PUBLIC orrery::cudnn PRIVATE orrery_development)
  target_compile_definitions(cudnn_engine PRIVATE CUDNN_FRONTEND_SKIP_JSON_LIB) # half of the time
  target_compile_options(cudnn_engine PRIVATE -O0)

  add_executable(test_cudnn kernel/cudnn/graphs.cpp)
  target_link_libraries(test_cudnn PRIVATE test_main cudnn_engine)
  add_dependencies(cuda_tests test_cudnn)
  find_library(driver NAMES libcuda.so.1 NO_CACHE)
  find_library(stub NAMES cuda PATHS ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_TARGET_DIR}/lib PATH_SUFFIXES stubs
               NO_DEFAULT_PATH NO_CACHE)
  if(driver OR stub)
    add_cuda_test(kernel.cudnn.graphs test_cudnn --no-intro)
  endif()
  if(stub AND NOT driver)
    file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/driver)
    file(CREATE_LINK ${stub} ${CMAKE_CURRENT_BINARY_DIR}/driver/libcuda.so.1 SYMBOLIC)
    set_tests_properties(kernel.cudnn.graphs PROPERTIES ENVIRONMENT_MODIFICATION
                                           LD_LIBRARY_PATH=path_list_append:${CMAKE_CURRENT_BINARY_DIR}/driver)
  endif()

  if(CMAKE_CUDA_COMPILER)
    add_executable(test_cudnn_gpu gpu/main.cpp kernel/cudnn/operator.cu)
    target_include_directories(test_cudnn_gpu PRIVATE ${PROJECT_SOURCE_DIR}/tests)
    target_link_libraries(test_cudnn_gpu PRIVATE cudnn_engine orrery_development doctest::doctest)
    if(for_gpu)
      add_dependencies(cuda_tests test_cudnn_gpu)
      add_cuda_test(gpu.cudnn test_cudnn_gpu --no-intro)
      set_tests_properties(gpu.cudnn PROPERTIES RESOURCE_LOCK gpu)
    endif()
  endif()
endif()

# A consumer that finds the installed package's components.
add_cuda_test(
  package.cuda
  ${CMAKE_CTEST_COMMAND}
  --build-and-test
  ${CMAKE_CURRENT_SOURCE_DIR}/package/cuda
  ${CMAKE_CURRENT_BINARY_DIR}/package/cuda
  --build-generator
  ${CMAKE_GENERATOR}
  --build-makeprogram
  ${CMAKE_MAKE_PROGRAM}
  --build-options
  -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
  -DCMAKE_PREFIX_PATH=${prefix}
  -DORRERY_CUDNN_FRONTEND_INCLUDE_DIR=${ORRERY_CUDNN_FRONTEND_INCLUDE_DIR}
  --test-command
  consumer)
set_tests_properties(package.cuda PROPERTIES FIXTURES_REQUIRED installed_package)
