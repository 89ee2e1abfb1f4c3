// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

namespace orrery {

/// The instruction sets that the host kernels are compiled for, narrowest first. All of them are in every build,
/// whatever its -march flag; `widest_instruction_set` says at run time which one to call.
enum class instruction_set : std::uint8_t {
  baseline,  ///< what the build's flags promise: SSE2 on x86-64
  avx2,      ///< AVX2 and FMA
  avx512,    ///< AVX-512 F, DQ, BW and VL
};

/// The widest instruction set that the processor and the operating system support. A few loads; no system call.
[[nodiscard]] inline instruction_set widest_instruction_set() noexcept {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return instruction_set::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return instruction_set::avx2;
#endif
  return instruction_set::baseline;
}

}  // namespace orrery

namespace orrery::detail {

/// A bit for each lane of an AVX-512 vector of floats or doubles, in the types that compilers declare their own
/// functions with.
#if defined(__clang__)
using mask_of_floats = unsigned short;
using mask_of_doubles = unsigned char;
#else
using mask_of_floats = short;
using mask_of_doubles = signed char;
#endif

/// A vector of `bytes` bytes of T in the compilers' vector extension; the same one at any address; and integers of its
/// elements' size, signed (as comparisons give them) and unsigned (which may overflow), and of half of it. Written out
/// one by one: nvcc's front end crashes on a vector size that is a template argument.
template <class T, int bytes>
struct simd;

template <>
struct simd<float, 16> {
  static constexpr std::int64_t lanes = 4;
  using vector [[gnu::vector_size(16)]] = float;
  using in_memory [[gnu::vector_size(16), gnu::aligned(alignof(float)), gnu::may_alias]] = float;
  using bits [[gnu::vector_size(16)]] = std::int32_t;
  using unsigned_bits [[gnu::vector_size(16)]] = std::uint32_t;
  using halves_in_memory [[gnu::vector_size(8), gnu::aligned(alignof(std::uint16_t)), gnu::may_alias]] = std::uint16_t;
};

template <>
struct simd<double, 16> {
  static constexpr std::int64_t lanes = 2;
  using vector [[gnu::vector_size(16)]] = double;
  using in_memory [[gnu::vector_size(16), gnu::aligned(alignof(double)), gnu::may_alias]] = double;
  using bits [[gnu::vector_size(16)]] = std::int64_t;
  using unsigned_bits [[gnu::vector_size(16)]] = std::uint64_t;
};

template <>
struct simd<float, 32> {
  static constexpr std::int64_t lanes = 8;
  using vector [[gnu::vector_size(32)]] = float;
  using in_memory [[gnu::vector_size(32), gnu::aligned(alignof(float)), gnu::may_alias]] = float;
  using bits [[gnu::vector_size(32)]] = std::int32_t;
  using unsigned_bits [[gnu::vector_size(32)]] = std::uint32_t;
  using halves_in_memory [[gnu::vector_size(16), gnu::aligned(alignof(std::uint16_t)), gnu::may_alias]] = std::uint16_t;
};

template <>
struct simd<double, 32> {
  static constexpr std::int64_t lanes = 4;
  using vector [[gnu::vector_size(32)]] = double;
  using in_memory [[gnu::vector_size(32), gnu::aligned(alignof(double)), gnu::may_alias]] = double;
  using bits [[gnu::vector_size(32)]] = std::int64_t;
  using unsigned_bits [[gnu::vector_size(32)]] = std::uint64_t;
};

template <>
struct simd<float, 64> {
  static constexpr std::int64_t lanes = 16;
  using vector [[gnu::vector_size(64)]] = float;
  using in_memory [[gnu::vector_size(64), gnu::aligned(alignof(float)), gnu::may_alias]] = float;
  using bits [[gnu::vector_size(64)]] = std::int32_t;
  using unsigned_bits [[gnu::vector_size(64)]] = std::uint32_t;
  using halves_in_memory [[gnu::vector_size(32), gnu::aligned(alignof(std::uint16_t)), gnu::may_alias]] = std::uint16_t;
};

template <>
struct simd<double, 64> {
  static constexpr std::int64_t lanes = 8;
  using vector [[gnu::vector_size(64)]] = double;
  using in_memory [[gnu::vector_size(64), gnu::aligned(alignof(double)), gnu::may_alias]] = double;
  using bits [[gnu::vector_size(64)]] = std::int64_t;
  using unsigned_bits [[gnu::vector_size(64)]] = std::uint64_t;
};

}  // namespace orrery::detail
