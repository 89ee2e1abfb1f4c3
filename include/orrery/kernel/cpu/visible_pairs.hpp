// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/attention/token_blocks.hpp"
#include "orrery/kernel/cpu/scratch.hpp"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// Which keys of a block the rows of another see: what the backward of `flash` asks a mask once, before it computes
/// with parts of both. Of a mask of intervals it keeps each row's interval of keys, of others a bit for each pair.
template <mask Mask, std::int64_t most_rows, std::int64_t most_keys>
class flash_visible_pairs {
 public:
  /// Asks the mask for the rows and the keys [first, last), which are groups of `granule` and a rest.
  void ask(const Mask& mask, const token_block& rows, const token_block& keys, std::int64_t first, std::int64_t last,
           std::int64_t granule) {
    for (std::int64_t i = 0; i < rows.count; ++i) {
      const std::int64_t position = rows.position(i);
      if constexpr (mask_of_intervals<Mask>) {
        const token_range seen = visible_tokens(mask, position, position, keys);
        seen_[i] = within(seen, first, last);
      } else {
        token_range any{last, first};
        std::uint64_t* bits = bits_[i];
        for (std::int64_t word = 0; word < words; ++word) bits[word] = 0;
        for (std::int64_t group = first; group < last; group += granule) {
          const std::int64_t end = group + granule < last ? group + granule : last;
          const visibility seen = mask.classify(position, position, keys.position(group), keys.position(end - 1));
          if (seen == visibility::none) continue;
          for (std::int64_t key = group; key < end; ++key) {
            if (seen == visibility::some && !mask.visible(position, keys.position(key))) continue;
            bits[key / 64] |= std::uint64_t{1} << (key % 64);
            any.first = key < any.first ? key : any.first;
            any.last = key + 1;
          }
        }
        seen_[i] = any.first < any.last ? any : token_range{};
      }
    }
  }

  /// True if row `i` sees none of the keys that were asked for.
  [[nodiscard]] bool is_hidden(std::int64_t i) const noexcept { return seen_[i].first == seen_[i].last; }

  /// Rows of the first `count` from the first one to the last one that may see one of the keys [first, last).
  [[nodiscard]] token_range rows_of(std::int64_t count, std::int64_t first, std::int64_t last) const noexcept {
    const auto sees = [&](std::int64_t i) { return seen_[i].first < last && seen_[i].last > first; };
    token_range rows{0, count};
    while (rows.first < rows.last && !sees(rows.first)) ++rows.first;
    while (rows.first < rows.last && !sees(rows.last - 1)) --rows.last;
    return rows;
  }

  /// Clears the pairs of these rows and the keys [first, last) that are not visible in each of `matrices`, whose rows
  /// are `ld` apart and begin with the key `first`. (What they hold may have overflowed: it is overwritten, not used.)
  /// `seen_by_some` becomes the keys that some row sees.
  template <class A, class SeenKeys>
  void clear_others(const token_range& rows, std::int64_t first, std::int64_t last, A* const (&matrices)[2],
                    std::int64_t ld, SeenKeys& seen_by_some) const {
    seen_by_some.begin(first, last, false);
    for (std::int64_t i = rows.first; i < rows.last; ++i) {
      const token_range seen = within(seen_[i], first, last);
      for (A* matrix : matrices) {
        A* line = matrix + i * ld - first;
        fill_zero(line + first, seen.first - first);
        fill_zero(line + seen.last, last - seen.last);
      }
      if constexpr (mask_of_intervals<Mask>) {
        seen_by_some.set(seen.first, seen.last, true);
      } else {
        for (std::int64_t key = seen.first; key < seen.last; ++key) {
          if ((bits_[i][key / 64] >> (key % 64) & 1) != 0) {
            seen_by_some.set(key, key + 1, true);
          } else {
            for (A* matrix : matrices) matrix[i * ld + key - first] = A{0};
          }
        }
      }
    }
  }

 private:
  static constexpr std::int64_t words = mask_of_intervals<Mask> ? 0 : (most_keys + 63) / 64;

  /// The part of `range` that is within [first, last); where there is none, an empty one within it.
  static token_range within(const token_range& range, std::int64_t first, std::int64_t last) noexcept {
    const std::int64_t begin = range.first < first ? first : range.first < last ? range.first : last;
    return {begin, range.last < begin ? begin : range.last < last ? range.last : last};
  }

  token_range seen_[static_cast<std::uint64_t>(most_rows)];
  std::uint64_t bits_[mask_of_intervals<Mask> ? 1 : static_cast<std::uint64_t>(most_rows)]
                     [words > 0 ? static_cast<std::uint64_t>(words) : 1];
};

}  // namespace orrery::detail
