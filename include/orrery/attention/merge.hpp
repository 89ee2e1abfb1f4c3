// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/tensor/math.hpp"

namespace orrery::detail {

/// How two partial results of one row combine: out = into * out_into + from * out_from, and the log-sum-exp of both.
template <class Accumulator>
struct merge_weighting {
  Accumulator into;
  Accumulator from;
  Accumulator lse;
};

/// The one merge formula of the library, for the partials (out, lse) of attention over disjoint sets of keys.
///
/// With m = max(a, b), the weights are exp(a - m) and exp(b - m) over their sum, and the new log-sum-exp is m +
/// log(sum). Both exponents are <= 0, so nothing overflows whatever the distance; the larger one is exactly 0, so the
/// sum is 1 + the smaller exponential and log1p keeps its last bits. Computed in the accumulator type.
///
/// A side that has seen no key (lse = -infinity) has weight exactly 0, and the other one exactly 1; if neither has seen
/// a key, the result is `into` as it was. If one side's lse is NaN (one of its scores was NaN or +infinity) and the
/// other side has seen a key, both weights and the log-sum-exp are NaN.
///
/// `constexpr` so that device code may call it.
///
/// Source: Milakov and Gimelshein, arXiv 1805.02867, section 3 (the normaliser's associative operator), here for
/// results that are already normalised, as in Dao, arXiv 2307.08691, section 3.1.
template <class Accumulator>
[[nodiscard]] constexpr merge_weighting<Accumulator> merge_weights(Accumulator lse_into,
                                                                   Accumulator lse_from) noexcept {
  if (math::is_minus_infinity(lse_from)) return {Accumulator{1}, Accumulator{0}, lse_into};
  if (math::is_minus_infinity(lse_into)) return {Accumulator{0}, Accumulator{1}, lse_from};
  if (!math::is_finite(lse_into) || !math::is_finite(lse_from)) {
    constexpr math::quiet_nan<Accumulator> nan{};
    return {nan, nan, nan};
  }
  const bool into_is_larger = lse_into >= lse_from;
  const Accumulator larger = into_is_larger ? lse_into : lse_from;
  const Accumulator smaller = into_is_larger ? lse_from : lse_into;
  const Accumulator ratio = math::exp(smaller - larger);
  const Accumulator major = Accumulator{1} / (Accumulator{1} + ratio);
  const Accumulator minor = ratio * major;
  return {into_is_larger ? major : minor, into_is_larger ? minor : major, larger + math::log1p(ratio)};
}

/// Merges one row: `dim` contiguous elements and their log-sum-exp. A row that has seen no key (lse = -infinity) is not
/// read, so it may hold anything. Every other row is read, even where its weight is too small for the type and so 0: an
/// infinity or NaN in it is not lost.
template <class Accumulator, class From>
inline void merge_row(Accumulator* out_into, Accumulator& lse_into, const From* out_from, Accumulator lse_from,
                      std::int64_t dim) noexcept {
  if (math::is_minus_infinity(lse_from)) return;
  if (math::is_minus_infinity(lse_into)) {
    lse_into = lse_from;
    for (std::int64_t i = 0; i < dim; ++i) out_into[i] = static_cast<Accumulator>(out_from[i]);
    return;
  }
  const auto weight = merge_weights(lse_into, lse_from);
  lse_into = weight.lse;
  for (std::int64_t i = 0; i < dim; ++i) {
    out_into[i] = weight.into * out_into[i] + weight.from * static_cast<Accumulator>(out_from[i]);
  }
}

}  // namespace orrery::detail
