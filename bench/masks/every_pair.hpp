// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "orrery/mask/mask.hpp"

namespace bench {

/// A mask of intervals that can be kept from an operator's plan. While `*planning` is true it says of intervals of more
/// than one query that all keys may be seen, so that the operator runs the topology's schedule as it is written; after
/// that it is the mask, so that kernels leave out what it hides. The kernels' code is the same either way.
///
///     bool planning = true;
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{
///         world, shape, bench::every_pair_planned{orrery::causal{}, &planning}};
///     planning = false;
///
/// `planning` must outlive the operator. Chunks must have more than one token: operators check that `keys_of` one query
/// is exact.
template <orrery::mask_with_keys_of Mask>
class every_pair_planned {
 public:
  static constexpr bool rows_are_intervals = Mask::rows_are_intervals;

  every_pair_planned(const Mask& mask, const bool* planning) : mask_{mask}, planning_{planning} {}

  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const { return mask_.visible(query, key); }
  [[nodiscard]] orrery::visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                            std::int64_t key_last) const {
    if (is_hidden(query_first, query_last)) return orrery::visibility::some;
    return mask_.classify(query_first, query_last, key_first, key_last);
  }
  [[nodiscard]] orrery::position_interval keys_of(std::int64_t query_first, std::int64_t query_last) const {
    if (is_hidden(query_first, query_last)) return {0, INT64_MAX};
    return mask_.keys_of(query_first, query_last);
  }
  [[nodiscard]] std::string name() const { return std::string{mask_.name()} + (*planning_ ? ", every pair" : ""); }

 private:
  [[nodiscard]] bool is_hidden(std::int64_t query_first, std::int64_t query_last) const {
    return *planning_ && query_first != query_last;
  }

  Mask mask_;
  const bool* planning_;
};

}  // namespace bench
