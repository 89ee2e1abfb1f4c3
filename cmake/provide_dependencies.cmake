# Where the presets take dependencies from. The project itself only says find_package(doctest); this dependency
# provider, injected by CMAKE_PROJECT_TOP_LEVEL_INCLUDES, answers with the first of
#
#   1. the installed package,
#   2. the distribution's package, downloaded by apt-get and unpacked into the build tree (no root needed),
#   3. the upstream release, pinned by its hash,
#
# and otherwise with one message that says what to install. cudnn_frontend, headers that are optional and that no
# distribution has, comes from the wheel of its Python package, pinned by its hash, or not at all.
include(FetchContent)

set(ORRERY_PROVIDES doctest benchmark)
set(ORRERY_cudnn_frontend_WHEEL nvidia-cudnn-frontend==1.32.0)
set(ORRERY_cudnn_frontend_SHA256 c6006556017a4d1c914c52a556c71b1267f2d6a0500f742e7b4edef539878df0)

set(ORRERY_doctest_DEBIAN doctest-dev)
set(ORRERY_doctest_URL https://github.com/doctest/doctest/archive/refs/tags/v2.4.12.tar.gz)
set(ORRERY_doctest_SHA256 73381c7aa4dee704bd935609668cf41880ea7f19fa0504a200e13b74999c2d70)
set(ORRERY_doctest_SETTINGS DOCTEST_NO_INSTALL=ON DOCTEST_WITH_TESTS=OFF)

set(ORRERY_benchmark_DEBIAN libbenchmark-dev libbenchmark1debian)
set(ORRERY_benchmark_URL https://github.com/google/benchmark/archive/refs/tags/v1.8.3.tar.gz)
set(ORRERY_benchmark_SHA256 6bc180a57d23d4d9515519f92b0c83d61b05b5bab188961f36ac7b06b0d9e9ce)
set(ORRERY_benchmark_SETTINGS BENCHMARK_ENABLE_INSTALL=OFF BENCHMARK_ENABLE_TESTING=OFF BENCHMARK_ENABLE_WERROR=OFF)

# Sets <package>_ROOT when the distribution's package could be had. apt-get reads the machine's package lists where it
# has some, and otherwise fetches lists of its own into the build tree.
function(orrery_unpack_distribution_package package)
  set(root ${CMAKE_BINARY_DIR}/_deps/debian/${package})
  if(NOT EXISTS ${root}/usr)
    find_program(ORRERY_APT_GET apt-get)
    find_program(ORRERY_DPKG dpkg)
    if(NOT ORRERY_APT_GET OR NOT ORRERY_DPKG)
      return()
    endif()
    list(JOIN ORRERY_${package}_DEBIAN " " packages)
    message(STATUS "${package}: not installed, trying the distribution's ${packages}")
    file(MAKE_DIRECTORY ${root}/lists/partial ${root}/cache/archives/partial)
    set(quiet OUTPUT_QUIET ERROR_QUIET RESULT_VARIABLE failed TIMEOUT 120)
    set(apt ${ORRERY_APT_GET} -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10 -o Acquire::Retries=1)
    set(download download ${ORRERY_${package}_DEBIAN} WORKING_DIRECTORY ${root})
    execute_process(COMMAND ${apt} ${download} ${quiet})
    if(failed)
      list(APPEND apt -o Dir::State::Lists=${root}/lists -o Dir::Cache=${root}/cache)
      execute_process(COMMAND ${apt} update ${quiet})
      execute_process(COMMAND ${apt} ${download} ${quiet})
    endif()
    file(GLOB archives ${root}/*.deb)
    if(failed OR NOT archives)
      return()
    endif()
    foreach(archive IN LISTS archives)
      execute_process(COMMAND ${ORRERY_DPKG} -x ${archive} ${root} COMMAND_ERROR_IS_FATAL ANY)
    endforeach()
    # Some packages (doctest) are told where they live instead of looking.
    file(GLOB_RECURSE targets ${root}/usr/lib/*Targets.cmake)
    foreach(file IN LISTS targets)
      file(READ ${file} text)
      string(REPLACE "set(_IMPORT_PREFIX \"/usr\")" "set(_IMPORT_PREFIX \"${root}/usr\")" text "${text}")
      file(WRITE ${file} "${text}")
    endforeach()
  endif()
  message(STATUS "${package}: the distribution's, unpacked into the build tree")
  set(${package}_ROOT ${root}/usr PARENT_SCOPE)
endfunction()

# Sets <package>_FOUND when the upstream release could be had. Downloaded by hand, because FetchContent answers a
# missing network with a page of errors.
function(orrery_build_upstream_release package)
  set(archive ${CMAKE_BINARY_DIR}/_deps/${package}.tar.gz)
  if(NOT EXISTS ${archive})
    message(STATUS "${package}: trying ${ORRERY_${package}_URL}")
    file(DOWNLOAD ${ORRERY_${package}_URL} ${archive} TIMEOUT 60 INACTIVITY_TIMEOUT 10 STATUS status)
    if(NOT status MATCHES "^0;")
      file(REMOVE ${archive})
      return()
    endif()
  endif()
  foreach(setting IN LISTS ORRERY_${package}_SETTINGS)
    string(REPLACE "=" ";" setting ${setting})
    set(${setting})
  endforeach()
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW) # or those settings would not reach an older release's options
  set(CMAKE_POLICY_DEFAULT_CMP0135 NEW)
  FetchContent_Declare(${package} SYSTEM URL ${archive} URL_HASH SHA256=${ORRERY_${package}_SHA256})
  FetchContent_MakeAvailable(${package})
  message(STATUS "${package}: the upstream release")
  set(${package}_FOUND TRUE PARENT_SCOPE)
endfunction()

# Sets cudnn_frontend_ROOT when the wheel could be had: any platform's, since only its headers are unpacked.
function(orrery_unpack_cudnn_frontend)
  set(root ${CMAKE_BINARY_DIR}/_deps/cudnn_frontend)
  if(NOT EXISTS ${root}/include)
    find_program(ORRERY_PYTHON python3)
    file(WRITE ${root}/requirements.txt
         "${ORRERY_cudnn_frontend_WHEEL} --hash=sha256:${ORRERY_cudnn_frontend_SHA256}\n")
    if(ORRERY_PYTHON)
      message(STATUS "cudnn_frontend: not installed, trying the Python package ${ORRERY_cudnn_frontend_WHEEL}")
      execute_process(
        COMMAND
          ${ORRERY_PYTHON} -m pip download --no-deps --only-binary=:all: --platform manylinux_2_28_x86_64
          --implementation cp --python-version 3.11 --require-hashes -d ${root} -r ${root}/requirements.txt
        OUTPUT_QUIET ERROR_QUIET RESULT_VARIABLE failed TIMEOUT 60)
    endif()
    file(GLOB wheel ${root}/*.whl)
    if(NOT wheel)
      message(STATUS "cudnn_frontend: not within reach, orrery::cudnn is left out")
      return()
    endif()
    execute_process(COMMAND ${CMAKE_COMMAND} -E tar xf ${wheel} -- include WORKING_DIRECTORY ${root}
                            COMMAND_ERROR_IS_FATAL ANY)
  endif()
  set(cudnn_frontend_ROOT ${root} PARENT_SCOPE)
endfunction()

# A macro, so that what find_package sets is seen by the caller. Where <package>_FOUND stays false, CMake goes on with
# the caller's own find_package, which then looks into <package>_ROOT.
macro(orrery_provide_dependency method package)
  if("${package}" STREQUAL cudnn_frontend)
    find_package(${package} QUIET BYPASS_PROVIDER)
    if(NOT ${package}_FOUND)
      orrery_unpack_cudnn_frontend()
    endif()
  endif()
  if("${package}" IN_LIST ORRERY_PROVIDES)
    if(NOT CMAKE_CROSSCOMPILING) # the installed package's folder has headers for this machine, too
      find_package(${package} QUIET BYPASS_PROVIDER)
    endif()
    if(NOT ${package}_FOUND)
      unset(${package}_DIR CACHE)
      orrery_unpack_distribution_package(${package})
      if(NOT ${package}_ROOT)
        orrery_build_upstream_release(${package})
        if(NOT ${package}_FOUND)
          set(${package}_FOUND TRUE) # or CMake would go on and add a page of its own
          list(JOIN ORRERY_${package}_DEBIAN " " orrery_packages)
          message(FATAL_ERROR "${package} is neither installed nor within reach: install it, on Debian and Ubuntu "
                              "with `apt-get install ${orrery_packages}`, and configure again.")
        endif()
      endif()
    endif()
  endif()
endmacro()

cmake_language(SET_DEPENDENCY_PROVIDER orrery_provide_dependency SUPPORTED_METHODS FIND_PACKAGE)
