// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// How many keys of a sequence of `keys` the queries of a closed interval see, in all. Exact for masks of intervals,
/// one question for each query. Others are asked for rectangles, cut in halves until they are not `some`, or no longer
/// than `finest` on either side: then a grid of 4 x 4 pairs stands for all of them.
template <mask Mask>
class visible_area {
 public:
  constexpr visible_area(const Mask& mask, std::int64_t keys, std::int64_t finest)
      : mask_{mask}, keys_{keys}, finest_{finest} {}

  [[nodiscard]] constexpr std::int64_t of(const position_interval& queries) const {
    if (queries.empty() || keys_ < 1) return 0;
    if constexpr (mask_of_intervals<Mask>) {
      std::int64_t sum = 0;
      for (std::int64_t query = queries.first; query <= queries.last; ++query) {
        const position_interval seen = mask_.keys_of(query, query) & position_interval{0, keys_ - 1};
        sum += seen.empty() ? 0 : seen.last - seen.first + 1;
      }
      return sum;
    } else {
      position_interval seen{0, keys_ - 1};
      if constexpr (mask_with_keys_of<Mask>) seen = seen & mask_.keys_of(queries.first, queries.last);
      return seen.empty() ? 0 : of_rectangle(queries, seen);
    }
  }

 private:
  [[nodiscard]] constexpr std::int64_t of_rectangle(const position_interval& queries,
                                                    const position_interval& keys) const {
    const std::int64_t rows = queries.last - queries.first + 1;
    const std::int64_t columns = keys.last - keys.first + 1;
    const visibility found = mask_.classify(queries.first, queries.last, keys.first, keys.last);
    if (found == visibility::none) return 0;
    if (found == visibility::all) return rows * columns;
    if (rows <= finest_ && columns <= finest_) return of_grid(queries, keys);
    if (rows >= columns) {
      const std::int64_t middle = queries.first + rows / 2;
      return of_rectangle({queries.first, middle - 1}, keys) + of_rectangle({middle, queries.last}, keys);
    }
    const std::int64_t middle = keys.first + columns / 2;
    return of_rectangle(queries, {keys.first, middle - 1}) + of_rectangle(queries, {middle, keys.last});
  }

  [[nodiscard]] constexpr std::int64_t of_grid(const position_interval& queries, const position_interval& keys) const {
    const std::int64_t rows = queries.last - queries.first + 1;
    const std::int64_t columns = keys.last - keys.first + 1;
    const std::int64_t asked_rows = rows < 4 ? rows : 4;
    const std::int64_t asked_columns = columns < 4 ? columns : 4;
    std::int64_t seen = 0;
    for (std::int64_t i = 0; i < asked_rows; ++i) {
      for (std::int64_t j = 0; j < asked_columns; ++j) {
        const std::int64_t query = queries.first + (2 * i + 1) * rows / (2 * asked_rows);
        const std::int64_t key = keys.first + (2 * j + 1) * columns / (2 * asked_columns);
        seen += mask_.visible(query, key) ? 1 : 0;
      }
    }
    return seen * rows * columns / (asked_rows * asked_columns);
  }

  const Mask& mask_;
  std::int64_t keys_;
  std::int64_t finest_;
};

}  // namespace orrery::detail
