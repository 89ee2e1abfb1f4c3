// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// What every header includes first: checks of the compiler and its flags, and all macros of the library. A failed check
// prints one message. The include behind it names no file, which is a fatal error: compilers stop there instead of
// printing hundreds of errors that follow from the first.

#if !defined(__GNUC__)
#error "Orrery needs GCC 12 or newer, or Clang 14 or newer: its kernels use their vector extensions."
#include "compilation stops here: see the error above"
#elif defined(__clang__) ? __clang_major__ < 14 : __GNUC__ < 12
#error "Orrery needs GCC 12 or newer, or Clang 14 or newer: this compiler is older."
#include "compilation stops here: see the error above"
#elif __cplusplus < 202002L
#error "Orrery needs C++20: compile with -std=c++20, or in CMake with target_compile_features(... cxx_std_20)."
#include "compilation stops here: see the error above"
#elif !defined(__cpp_exceptions)
#error "Orrery reports errors by exceptions: compile without -fno-exceptions."
#include "compilation stops here: see the error above"
#endif

/// \def ORRERY_DEVICE
/// Marks a function as a device function for nvcc. For other compilers it is an ordinary function.
///
/// \def ORRERY_UNROLL
/// Tells nvcc to unroll the loop that follows: its body indexes registers. Other compilers warn of the pragma.
///
/// \def ORRERY_NO_UNROLL
/// Tells nvcc not to unroll the loop that follows: it seldom runs, and unrolled it would take registers from loops that
/// run often.
///
/// \def ORRERY_NO_INLINE
/// Tells nvcc to call the device function: it seldom runs, and inlined it would take registers from what runs often.
///
/// \def ORRERY_EXTERN
/// Before an explicit instantiation: `extern`, but in the source file that defines ORRERY_IMPLEMENTATION (see
/// compiled.hpp).
#ifdef ORRERY_IMPLEMENTATION
#define ORRERY_EXTERN
#else
#define ORRERY_EXTERN extern
#endif

#ifdef __CUDACC__
#define ORRERY_DEVICE __device__
#define ORRERY_UNROLL _Pragma("unroll")
#define ORRERY_NO_UNROLL _Pragma("unroll 1")
#define ORRERY_NO_INLINE __noinline__
#else
#define ORRERY_DEVICE
#define ORRERY_UNROLL
#define ORRERY_NO_UNROLL
#define ORRERY_NO_INLINE
#endif
