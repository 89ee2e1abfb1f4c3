// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "orrery/kernel/cpu/simd.hpp"

#include "support/oracle.hpp"

/// What results.cpp computes with the library. It is compiled twice: with -Ofast, which declares `relaxed`, and
/// without, which declares `strict`. Both are in one program, where the linker keeps one copy of each inline function.
///
/// All results are doubles, so that the code that judges them is not compiled with -Ofast.
namespace fast_math {

enum class element : std::uint8_t { float32, float64, bfloat16, float16 };

/// The kernel that computes: `flash` limited to an instruction set, or `reference`.
struct kernel {
  fast_math::element element = element::float32;
  bool reference = false;
  orrery::instruction_set limit = orrery::instruction_set::avx512;
};

/// Keys are visible up to `query + offset`.
struct call {
  fast_math::kernel kernel;
  std::int64_t offset = 0;
  int query_shards = 1;
  int key_shards = 1;
};

struct unit {
  /// The kernel on shards, one call for each pair of them.
  oracle::answer (*attention)(const oracle::problem& p, const call& how);
  /// `out` and `lse` as partials of two halves of the keys, computed apart and merged.
  oracle::answer (*merged)(const oracle::problem& p, const call& how);
  /// `flash<float>` on `ranks` threads by the topology `ring`, `concentric` or `wallfacer`.
  oracle::answer (*operated)(const oracle::problem& p, std::int64_t offset, const std::string& topology, int ranks);
  /// 2^y as an instruction set computes it.
  std::vector<double> (*powers)(const std::vector<double>& y, bool in_float, orrery::instruction_set set);
  /// The bits of each value rounded to a 16-bit type, by way of float or from double.
  std::vector<std::uint16_t> (*narrowed)(const std::vector<double>& values, element to, bool by_float);
  /// The values of bits, as an instruction set widens them.
  std::vector<double> (*widened)(const std::vector<std::uint16_t>& bits, element from, orrery::instruction_set set);
};

[[nodiscard]] unit relaxed();
[[nodiscard]] unit strict();

}  // namespace fast_math
