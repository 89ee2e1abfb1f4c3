// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// Operators that are compiled once, not in every source file that uses them. Nothing here is needed without that.
//
// Most of what a compiler makes of an operator does not depend on its topology or layout, but on its kernel, transport
// and mask. For those listed below a program can compile it once:
//
// - in CMake, by linking the target orrery::compiled in the place of orrery::orrery; or
// - anywhere else, by defining ORRERY_COMPILED for all source files (-DORRERY_COMPILED), and ORRERY_IMPLEMENTATION in
//   one of them, before it includes orrery/orrery.hpp.
//
// Source files do not change. Every other kernel, transport or mask works as well: it is compiled where it is used, as
// without this. Source files that define ORRERY_COMPILED and others that do not may be linked together. What is
// compiled once obeys the flags of that one source file or target: -march=native or -O3 elsewhere do not reach it.

#include "orrery/config.hpp"

#if defined(ORRERY_COMPILED) || defined(ORRERY_IMPLEMENTATION)

#include <utility>

#include "orrery/attention/planned_attention.hpp"
#include "orrery/detail/function_ref.hpp"
#include "orrery/kernel/cpu/microkernels.hpp"
#include "orrery/kernel/cpu/simd.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/intersection.hpp"
#include "orrery/mask/window.hpp"
#include "orrery/tensor/float16.hpp"
#include "orrery/transport/threads.hpp"

namespace orrery::detail {

using causal_documents = decltype(std::declval<const documents&>() & std::declval<const causal&>());
using windowed_documents = decltype(std::declval<const documents&>() & std::declval<const window&>());
using causal_window = decltype(std::declval<const causal&>() & std::declval<const window&>());

// A build can define them in several source files, for speed: ORRERY_IMPLEMENTATION_PART is then 1, 2, 3 or 4.

#if !defined(ORRERY_IMPLEMENTATION_PART) || ORRERY_IMPLEMENTATION_PART == 1
// A program that is linked with what was compiled of another version fails to link, and names this.
extern const char compiled_library_of_version_0_1_0;
#ifdef ORRERY_IMPLEMENTATION
const char compiled_library_of_version_0_1_0 = 0;
#else
[[gnu::used]] inline const char* const compiled_library = &compiled_library_of_version_0_1_0;
#endif
ORRERY_EXTERN template void run_worlds(int, const threads::options&, function_ref<void(threads::world&)>);
ORRERY_EXTERN template flash_steps<float> flash_steps_for<float>(instruction_set) noexcept;
ORRERY_EXTERN template struct attention_planner<flash<float>, threads::world, full>;
ORRERY_EXTERN template struct attention_planner<flash<float>, threads::world, causal>;
ORRERY_EXTERN template struct attention_planner<flash<float>, threads::world, window>;
ORRERY_EXTERN template struct attention_planner<flash<float>, threads::world, documents>;
ORRERY_EXTERN template struct attention_planner<flash<float>, threads::world, causal_documents>;
ORRERY_EXTERN template struct attention_planner<flash<float>, threads::world, windowed_documents>;
ORRERY_EXTERN template struct attention_planner<flash<float>, threads::world, causal_window>;
#endif

#if !defined(ORRERY_IMPLEMENTATION_PART) || ORRERY_IMPLEMENTATION_PART == 2
ORRERY_EXTERN template flash_steps<double> flash_steps_for<double>(instruction_set) noexcept;
ORRERY_EXTERN template struct attention_planner<flash<double>, threads::world, full>;
ORRERY_EXTERN template struct attention_planner<flash<double>, threads::world, causal>;
ORRERY_EXTERN template struct attention_planner<flash<double>, threads::world, window>;
ORRERY_EXTERN template struct attention_planner<flash<double>, threads::world, documents>;
ORRERY_EXTERN template struct attention_planner<flash<double>, threads::world, causal_documents>;
ORRERY_EXTERN template struct attention_planner<flash<double>, threads::world, windowed_documents>;
ORRERY_EXTERN template struct attention_planner<flash<double>, threads::world, causal_window>;
#endif

#if !defined(ORRERY_IMPLEMENTATION_PART) || ORRERY_IMPLEMENTATION_PART == 3
ORRERY_EXTERN template struct attention_planner<flash<bfloat16>, threads::world, full>;
ORRERY_EXTERN template struct attention_planner<flash<bfloat16>, threads::world, causal>;
ORRERY_EXTERN template struct attention_planner<flash<bfloat16>, threads::world, window>;
ORRERY_EXTERN template struct attention_planner<flash<bfloat16>, threads::world, documents>;
ORRERY_EXTERN template struct attention_planner<flash<bfloat16>, threads::world, causal_documents>;
ORRERY_EXTERN template struct attention_planner<flash<bfloat16>, threads::world, windowed_documents>;
ORRERY_EXTERN template struct attention_planner<flash<bfloat16>, threads::world, causal_window>;
ORRERY_EXTERN template struct attention_planner<flash<float16>, threads::world, full>;
ORRERY_EXTERN template struct attention_planner<flash<float16>, threads::world, causal>;
ORRERY_EXTERN template struct attention_planner<flash<float16>, threads::world, window>;
ORRERY_EXTERN template struct attention_planner<flash<float16>, threads::world, documents>;
ORRERY_EXTERN template struct attention_planner<flash<float16>, threads::world, causal_documents>;
ORRERY_EXTERN template struct attention_planner<flash<float16>, threads::world, windowed_documents>;
ORRERY_EXTERN template struct attention_planner<flash<float16>, threads::world, causal_window>;
#endif

#if !defined(ORRERY_IMPLEMENTATION_PART) || ORRERY_IMPLEMENTATION_PART == 4
ORRERY_EXTERN template struct attention_planner<reference<float>, threads::world, full>;
ORRERY_EXTERN template struct attention_planner<reference<float>, threads::world, causal>;
ORRERY_EXTERN template struct attention_planner<reference<float>, threads::world, window>;
ORRERY_EXTERN template struct attention_planner<reference<float>, threads::world, documents>;
ORRERY_EXTERN template struct attention_planner<reference<float>, threads::world, causal_documents>;
ORRERY_EXTERN template struct attention_planner<reference<float>, threads::world, windowed_documents>;
ORRERY_EXTERN template struct attention_planner<reference<float>, threads::world, causal_window>;
ORRERY_EXTERN template struct attention_planner<reference<double>, threads::world, full>;
ORRERY_EXTERN template struct attention_planner<reference<double>, threads::world, causal>;
ORRERY_EXTERN template struct attention_planner<reference<double>, threads::world, window>;
ORRERY_EXTERN template struct attention_planner<reference<double>, threads::world, documents>;
ORRERY_EXTERN template struct attention_planner<reference<double>, threads::world, causal_documents>;
ORRERY_EXTERN template struct attention_planner<reference<double>, threads::world, windowed_documents>;
ORRERY_EXTERN template struct attention_planner<reference<double>, threads::world, causal_window>;
#endif

}  // namespace orrery::detail

#endif
