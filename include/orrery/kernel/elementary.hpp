// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

/// The mathematical library's functions that headers need, by the compilers' own names: <cmath> would cost every file
/// that includes this library a tenth of a second.
namespace orrery::elementary {

[[nodiscard]] inline float exp(float x) noexcept { return __builtin_expf(x); }
[[nodiscard]] inline double exp(double x) noexcept { return __builtin_exp(x); }
[[nodiscard]] inline float log(float x) noexcept { return __builtin_logf(x); }
[[nodiscard]] inline double log(double x) noexcept { return __builtin_log(x); }
[[nodiscard]] inline float log1p(float x) noexcept { return __builtin_log1pf(x); }
[[nodiscard]] inline double log1p(double x) noexcept { return __builtin_log1p(x); }
[[nodiscard]] inline double sqrt(double x) noexcept { return __builtin_sqrt(x); }

/// Neither infinite nor a NaN.
[[nodiscard]] constexpr bool is_finite(double x) noexcept { return x - x == 0; }

}  // namespace orrery::elementary
