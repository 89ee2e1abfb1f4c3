# How this project compiles its own tests, examples and benchmarks. Linked privately and never exported:
# warnings are a promise to ourselves, not a burden on users.
include(CheckCXXCompilerFlag)

# Off, as it is for most users: the kernels choose their instructions at run time.
option(ORRERY_NATIVE "Compile for this machine's processor" OFF)

add_library(orrery_development INTERFACE)
set(warnings
    -Wall
    -Wextra
    -Wpedantic
    -Werror
    -Wcast-align
    -Wcast-qual
    -Wconversion
    -Wdouble-promotion
    -Wextra-semi
    -Wnon-virtual-dtor
    -Wold-style-cast
    -Woverloaded-virtual
    -Wshadow
    -Wsign-conversion
    -Wundef
    # GCC 12 sees overlapping copies in every "literal" + std::string (bug 105329).
    $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)
target_compile_options(
  orrery_development
  INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${warnings}>
            # What nvcc generates for the host is no style of ours.
            "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Wno-unused-parameter,-Werror>"
            $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<CXX_COMPILER_ID:GNU>>:-Xcompiler=-Wno-restrict>)

if(ORRERY_NATIVE)
  check_cxx_compiler_flag(-march=native ORRERY_HAS_MARCH_NATIVE)
  target_compile_options(orrery_development INTERFACE $<$<AND:$<BOOL:${ORRERY_HAS_MARCH_NATIVE}>,$<COMPILE_LANGUAGE:CXX>>:-march=native>)
endif()
