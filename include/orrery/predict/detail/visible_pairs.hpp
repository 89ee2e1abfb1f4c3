// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "orrery/attention/may_see.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// The visible pairs of a segment of queries and one of keys.
struct pair_count {
  std::int64_t pairs = 0;
  std::int64_t rows = 0;          ///< queries that see a key
  std::int64_t longest_row = 0;   ///< the most keys that one sees
  std::int64_t partial_rows = 0;  ///< queries that see some keys and not all

  bool operator==(const pair_count&) const = default;
};

/// How many of a segment's positions are less than `end`.
[[nodiscard]] constexpr std::int64_t positions_before(const segment& s, std::int64_t end) noexcept {
  if (s.count <= 0 || end <= s.begin) return 0;
  const std::int64_t ahead = end - s.begin;
  if (s.run >= s.count) return ahead < s.count ? ahead : s.count;
  const std::int64_t runs = ahead / s.stride;
  const std::int64_t rest = ahead % s.stride;
  const std::int64_t before = runs * s.run + (rest < s.run ? rest : s.run);
  return before < s.count ? before : s.count;
}

/// The sum over i = 0, ..., runs - 1 of how many positions of `keys` are at most first + i * stride.
[[nodiscard]] constexpr std::int64_t sum_of_positions_before(const segment& keys, std::int64_t first,
                                                             std::int64_t stride, std::int64_t count) noexcept {
  std::int64_t sum = 0;
  const bool one_run = keys.run >= keys.count;
  if (one_run && stride == 1) {                        // a triangle, then a rectangle
    const std::int64_t from = first + 1 - keys.begin;  // keys of the first row; 0 or less: none
    const std::int64_t none = from >= 0 ? 0 : -from < count ? -from : count;
    const std::int64_t begin = from + none;  // keys of the first row that may see one
    std::int64_t rising = keys.count - begin + 1;
    rising = rising < 0 ? 0 : rising < count - none ? rising : count - none;
    sum = rising * begin + rising * (rising - 1) / 2;
    return sum + (count - none - rising) * keys.count;
  }
  if (!one_run && keys.stride == stride) {  // each row sees keys.run more than the one before, until all are seen
    for (std::int64_t i = 0; i < count;) {
      const std::int64_t seen = positions_before(keys, first + i * stride + 1);
      if (seen == keys.count) return sum + (count - i) * keys.count;
      if (seen == 0) {  // skip to where the first key is seen
        const std::int64_t skip = (keys.begin - first - i * stride + stride - 1) / stride;
        i += skip > 1 ? skip : 1;
        continue;
      }
      const std::int64_t steps_to_all = (keys.count - seen) / keys.run;  // whole runs more
      std::int64_t rising = steps_to_all < count - i ? steps_to_all : count - i;
      if (rising < 1) rising = 1;
      sum += rising * seen + keys.run * (rising * (rising - 1) / 2);
      i += rising;
    }
    return sum;
  }
  for (std::int64_t i = 0; i < count; ++i) sum += positions_before(keys, first + i * stride + 1);
  return sum;
}

/// The pairs of a diagonal: a query at position i sees the keys at positions <= i + offset. Some pair is visible, and
/// some is not.
[[nodiscard]] constexpr pair_count count_below_diagonal(const segment& queries, const segment& keys,
                                                        std::int64_t offset) noexcept {
  pair_count n;
  const std::int64_t last_key = keys.position(keys.count - 1);
  n.rows = queries.count - positions_before(queries, keys.begin - offset);
  n.partial_rows = positions_before(queries, last_key - offset) - positions_before(queries, keys.begin - offset);
  n.longest_row = positions_before(keys, queries.position(queries.count - 1) + offset + 1);
  const std::int64_t run = queries.run < queries.count ? queries.run : queries.count;
  if (run == queries.count) {
    n.pairs = sum_of_positions_before(keys, queries.begin + offset, 1, queries.count);
    return n;
  }
  for (std::int64_t r = 0; r < run; ++r) {  // the r-th queries of all runs
    const std::int64_t count = (queries.count - r + run - 1) / run;
    n.pairs += sum_of_positions_before(keys, queries.begin + r + offset, queries.stride, count);
  }
  return n;
}

/// How many positions of `keys` are in an interval.
[[nodiscard]] constexpr std::int64_t positions_in(const segment& keys, const position_interval& seen) noexcept {
  if (seen.empty()) return 0;
  const std::int64_t end = seen.last == INT64_MAX ? INT64_MAX : seen.last + 1;
  return positions_before(keys, end) - positions_before(keys, seen.first);
}

/// Adds to the rows how many keys each query sees, cutting rectangles until the mask knows all about them.
template <mask Mask>
void add_rows_by_classify(const Mask& mask, const segment& queries, const segment& keys, std::int64_t first_query,
                          std::int64_t query_count, std::int64_t first_key, std::int64_t key_count,
                          std::vector<std::int64_t>& rows) {
  const std::int64_t a = queries.position(first_query), b = queries.position(first_query + query_count - 1);
  const std::int64_t c = keys.position(first_key), d = keys.position(first_key + key_count - 1);
  const visibility found = mask.classify(a, b, c, d);
  if (found == visibility::none) return;
  if (found == visibility::all) {
    for (std::int64_t q = first_query; q < first_query + query_count; ++q) {
      rows[static_cast<std::size_t>(q)] += key_count;
    }
    return;
  }
  constexpr std::int64_t leaf = 16;
  if (query_count <= leaf && key_count <= leaf) {
    for (std::int64_t q = first_query; q < first_query + query_count; ++q) {
      for (std::int64_t k = first_key; k < first_key + key_count; ++k) {
        if (mask.visible(queries.position(q), keys.position(k))) ++rows[static_cast<std::size_t>(q)];
      }
    }
    return;
  }
  if (query_count >= key_count) {
    const std::int64_t half = query_count / 2;
    add_rows_by_classify(mask, queries, keys, first_query, half, first_key, key_count, rows);
    add_rows_by_classify(mask, queries, keys, first_query + half, query_count - half, first_key, key_count, rows);
  } else {
    const std::int64_t half = key_count / 2;
    add_rows_by_classify(mask, queries, keys, first_query, query_count, first_key, half, rows);
    add_rows_by_classify(mask, queries, keys, first_query, query_count, first_key + half, key_count - half, rows);
  }
}

/// Counts the visible pairs of two segments, exactly. Constant time where the mask answers none or all, and for
/// diagonals; else a question for each query where `rows_are_intervals`; else one for each rectangle along the mask's
/// edges, and in the worst case for each pair.
template <mask Mask>
[[nodiscard]] pair_count count_visible_pairs(const Mask& mask, const segment& queries, const segment& keys) {
  if (queries.count <= 0 || keys.count <= 0) return {};
  const position_interval asking = positions_of(queries);
  const position_interval asked = positions_of(keys);
  const visibility found = mask.classify(asking.first, asking.last, asked.first, asked.last);
  if (found == visibility::none) return {};
  if (found == visibility::all) return {queries.count * keys.count, queries.count, keys.count, 0};
  if constexpr (diagonal_mask<Mask>) {
    if (is_diagonal(mask)) {
      const std::int64_t offset = mask.diagonal();
      if (offset <= -asking.last - 1 + asked.first) return {};
      if (offset >= asked.last - asking.first) return {queries.count * keys.count, queries.count, keys.count, 0};
      return count_below_diagonal(queries, keys, offset);
    }
  }
  pair_count n;
  const auto add_row = [&](std::int64_t seen) {
    n.pairs += seen;
    n.rows += seen > 0 ? 1 : 0;
    n.longest_row = (std::max)(n.longest_row, seen);
    n.partial_rows += seen > 0 && seen < keys.count ? 1 : 0;
  };
  if constexpr (mask_of_intervals<Mask>) {
    for (std::int64_t q = 0; q < queries.count; ++q) {
      const std::int64_t at = queries.position(q);
      add_row(positions_in(keys, mask.keys_of(at, at)));
    }
  } else {
    std::vector<std::int64_t> rows(static_cast<std::size_t>(queries.count));
    add_rows_by_classify(mask, queries, keys, 0, queries.count, 0, keys.count, rows);
    for (const std::int64_t seen : rows) add_row(seen);
  }
  return n;
}

}  // namespace orrery::detail
