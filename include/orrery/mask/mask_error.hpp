// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// Compares what a mask says of rectangles and intervals with what it says of their pairs.
template <mask Mask>
class mask_check {
 public:
  mask_check(const Mask& mask, std::int64_t query_length, std::int64_t key_length)
      : mask_{mask}, query_length_{query_length}, key_length_{key_length} {}

  /// Asks for rectangles of all sizes, the same ones in every process, and of each for its corners and some other
  /// pairs; and for rectangles that end or begin where what some query sees does. Empty, or a message.
  [[nodiscard]] std::string samples(int count) {
    if (query_length_ < 1 || key_length_ < 1) return "";
    for (int i = 0; i < count; ++i) {
      const position_interval queries = some_interval(query_length_);
      // Half of them near the queries, where most masks change.
      const position_interval keys = i % 2 == 0 ? some_interval(key_length_) : some_interval_near(queries);
      if (std::string wrong = rectangle(queries, keys); !wrong.empty()) return wrong;
      if (std::string wrong = edge(some_of(queries)); !wrong.empty()) return wrong;
      if (queries.last < key_length_) {
        if (std::string wrong = rectangle(queries, queries); !wrong.empty()) return wrong;  // on the diagonal
      }
      if constexpr (mask_with_keys_of<Mask>) {
        const position_interval seen = mask_.keys_of(queries.first, queries.last);
        const std::int64_t outside[] = {seen.empty() ? some_of(keys) : seen.first - 1,
                                        seen.empty()            ? keys.first
                                        : seen.last < INT64_MAX ? seen.last + 1
                                                                : -1,
                                        some_of(keys), keys.first, keys.last};
        for (const std::int64_t key : outside) {
          if (key < 0 || key >= key_length_ || seen.contains(key)) continue;
          for (const std::int64_t query : {queries.first, queries.last, some_of(queries)}) {
            if (mask_.visible(query, key)) return seen_outside(queries, seen, query, key);
          }
        }
      }
      if constexpr (mask_of_intervals<Mask>) {
        const std::int64_t query = some_of(queries);
        const position_interval seen = mask_.keys_of(query, query) & position_interval{0, key_length_ - 1};
        if (seen.empty()) continue;
        for (const std::int64_t key : {seen.first, seen.last, some_of(seen)}) {
          if (!mask_.visible(query, key)) return hidden_inside(seen, query, key);
        }
      }
    }
    return "";
  }

  /// Asks for every rectangle and every interval of queries. Empty, or a message. Cost: O(Q² K²) for Q queries and K
  /// keys.
  [[nodiscard]] std::string all() const {
    // visible_before[q][k]: pairs of queries before q and keys before k.
    const auto row = static_cast<std::size_t>(key_length_ + 1);
    std::vector<std::int64_t> visible_before(static_cast<std::size_t>(query_length_ + 1) * row);
    const auto before = [&](std::int64_t query, std::int64_t key) -> std::int64_t& {
      return visible_before[static_cast<std::size_t>(query) * row + static_cast<std::size_t>(key)];
    };
    for (std::int64_t q = 0; q < query_length_; ++q) {
      for (std::int64_t k = 0; k < key_length_; ++k) {
        before(q + 1, k + 1) = before(q, k + 1) + before(q + 1, k) - before(q, k) + (mask_.visible(q, k) ? 1 : 0);
      }
    }
    const auto pairs = [&](const position_interval& queries, const position_interval& keys) {
      return before(queries.last + 1, keys.last + 1) - before(queries.first, keys.last + 1) -
             before(queries.last + 1, keys.first) + before(queries.first, keys.first);
    };
    for (position_interval queries{0, 0}; queries.first < query_length_; ++queries.first) {
      for (queries.last = queries.first; queries.last < query_length_; ++queries.last) {
        for (position_interval keys{0, 0}; keys.first < key_length_; ++keys.first) {
          for (keys.last = keys.first; keys.last < key_length_; ++keys.last) {
            const visibility said = mask_.classify(queries.first, queries.last, keys.first, keys.last);
            if (said == visibility::some) continue;
            const std::int64_t count = (queries.last - queries.first + 1) * (keys.last - keys.first + 1);
            if (pairs(queries, keys) == (said == visibility::all ? count : 0)) continue;
            for (std::int64_t q = queries.first; q <= queries.last; ++q) {
              for (std::int64_t k = keys.first; k <= keys.last; ++k) {
                if (mask_.visible(q, k) != (said == visibility::all)) return broken(queries, keys, said, q, k);
              }
            }
          }
        }
        if constexpr (mask_with_keys_of<Mask>) {
          const position_interval seen = mask_.keys_of(queries.first, queries.last);
          for (std::int64_t k = 0; k < key_length_; ++k) {
            for (std::int64_t q = queries.first; q <= queries.last; ++q) {
              const bool visible = mask_.visible(q, k);
              if (visible && !seen.contains(k)) return seen_outside(queries, seen, q, k);
              if (mask_of_intervals<Mask> && queries.first == queries.last && !visible && seen.contains(k)) {
                return hidden_inside(seen, q, k);
              }
            }
          }
        }
      }
    }
    return "";
  }

 private:
  /// Compares what `classify` says of a rectangle with its corners and some other pairs. Empty, or a message.
  [[nodiscard]] std::string rectangle(const position_interval& queries, const position_interval& keys) {
    const visibility said = mask_.classify(queries.first, queries.last, keys.first, keys.last);
    if (said == visibility::some) return "";
    for (int pair = 0; pair < 8; ++pair) {
      // The corners first.
      const std::int64_t query = pair < 4 ? (pair % 2 == 0 ? queries.first : queries.last) : some_of(queries);
      const std::int64_t key = pair < 4 ? (pair / 2 == 0 ? keys.first : keys.last) : some_of(keys);
      if (mask_.visible(query, key) != (said == visibility::all)) return broken(queries, keys, said, query, key);
    }
    return "";
  }

  /// Finds two neighbouring keys of which the query sees one, if it sees some and not all, and asks for rectangles with
  /// a corner there: where a `classify` that is off by one is wrong. Empty, or a message.
  [[nodiscard]] std::string edge(std::int64_t query) {
    const std::int64_t last = key_length_ - 1;
    std::int64_t low = 0;
    std::int64_t high = last;
    const std::int64_t between[] = {query < last ? query : last, number(last), number(last)};
    for (const std::int64_t key : between) {
      if (mask_.visible(query, low) == mask_.visible(query, high)) (number(1) == 0 ? low : high) = key;
    }
    if (low > high) return "";
    const bool before = mask_.visible(query, low);
    if (before == mask_.visible(query, high)) return "";
    while (high - low > 1) {
      const std::int64_t middle = low + (high - low) / 2;
      (mask_.visible(query, middle) == before ? low : high) = middle;
    }
    const std::int64_t more = number(3);
    const std::int64_t from_query = query > more ? query - more : 0;
    const std::int64_t to_query = query < query_length_ - 1 - more ? query + more : query_length_ - 1;
    const std::int64_t from_key = low > more ? low - more : 0;
    const std::int64_t to_key = high < last - more ? high + more : last;
    for (const position_interval& queries : {position_interval{query, query}, {from_query, query}, {query, to_query}}) {
      for (const position_interval& keys :
           {position_interval{low, low}, {high, high}, {from_key, low}, {high, to_key}}) {
        if (std::string wrong = rectangle(queries, keys); !wrong.empty()) return wrong;
      }
    }
    return "";
  }

  /// A number from 0 to `most` (splitmix64).
  [[nodiscard]] std::int64_t number(std::int64_t most) {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return static_cast<std::int64_t>((z ^ (z >> 31)) % (static_cast<std::uint64_t>(most) + 1));
  }
  [[nodiscard]] std::int64_t some_of(const position_interval& all) { return all.first + number(all.last - all.first); }
  /// Of a size that is as likely from 1 to 2 as from 512 to 1024.
  [[nodiscard]] position_interval some_interval(std::int64_t length) {
    int scales = 0;
    while (scales < 62 && length >> scales > 1) ++scales;
    const std::int64_t scale = (std::int64_t{1} << number(scales)) - 1;
    const std::int64_t more = number(scale < length ? scale : length - 1);
    const std::int64_t first = number(length - 1 - more);
    return {first, first + more};
  }

  /// Keys at most twice the queries' number away from them, if the sequence goes that far.
  [[nodiscard]] position_interval some_interval_near(const position_interval& queries) {
    const std::int64_t tokens = queries.last - queries.first + 1;
    const std::int64_t last = key_length_ - 1;
    const std::int64_t low = queries.first > tokens ? queries.first - tokens : 0;
    const std::int64_t high = queries.last < last - tokens ? queries.last + tokens : last;
    if (low > high) return some_interval(key_length_);
    const std::int64_t first = low + number(high - low);
    const std::int64_t more = number(tokens);
    return {first, more < last - first ? first + more : last};
  }

  [[nodiscard]] static std::string text(const position_interval& all) {
    return std::to_string(all.first) + " to " + std::to_string(all.last);
  }
  [[nodiscard]] std::string start() const { return "mask " + std::string{mask_.name()} + ": "; }
  [[nodiscard]] std::string broken(const position_interval& queries, const position_interval& keys, visibility said,
                                   std::int64_t query, std::int64_t key) const {
    const bool all = said == visibility::all;
    return start() + "classify says that of the queries " + text(queries) + " and the keys " + text(keys) +
           (all ? " all pairs are" : " no pair is") + " visible, but visible(" + std::to_string(query) + ", " +
           std::to_string(key) + ") is " + (all ? "false" : "true") +
           "; `all` and `none` are promises, `some` is always right";
  }
  [[nodiscard]] std::string seen_outside(const position_interval& queries, const position_interval& seen,
                                         std::int64_t query, std::int64_t key) const {
    return start() + "keys_of says that the queries " + text(queries) + " see " +
           (seen.empty() ? "no key" : "only the keys " + text(seen)) + ", but visible(" + std::to_string(query) + ", " +
           std::to_string(key) + ") is true; the interval must contain every key that one of them sees";
  }
  [[nodiscard]] std::string hidden_inside(const position_interval& seen, std::int64_t query, std::int64_t key) const {
    return start() + "rows_are_intervals says that query " + std::to_string(query) + " sees all of the keys " +
           text(seen) + ", but visible(" + std::to_string(query) + ", " + std::to_string(key) +
           ") is false; leave rows_are_intervals out where keys_of of one query has keys that it does not see";
  }

  const Mask& mask_;
  std::int64_t query_length_;
  std::int64_t key_length_;
  std::uint64_t state_ = 1;
};

/// Empty, or a message: what is wrong with the mask's parameters.
template <mask Mask>
[[nodiscard]] std::string wrong_parameters(const Mask& mask, std::int64_t query_length, std::int64_t key_length) {
  const std::string wrong = wrong_lengths_of(mask, query_length, key_length);
  return wrong.empty() ? "" : "mask " + std::string{mask.name()} + ": " + wrong;
}

/// What an operator's constructor asks of its mask. Empty, or a message.
template <mask Mask>
[[nodiscard]] std::string wrong_mask(const Mask& mask, std::int64_t query_length, std::int64_t key_length) {
  std::string wrong = wrong_parameters(mask, query_length, key_length);
  if (!wrong.empty()) return wrong;
  constexpr int samples = 32;  // a few microseconds
  return mask_check<Mask>{mask, query_length, key_length}.samples(samples);
}

}  // namespace orrery::detail

namespace orrery {

/// Checks for sequences of these lengths that a mask keeps its promises: that what `classify`, `keys_of` and
/// `rows_are_intervals` say is true of `visible`. Empty, or a message that names the pair. For tests of masks of your
/// own:
///
///     assert(orrery::mask_error(my_mask{}, 20, 30).empty());
///
/// Asks for every rectangle where lengths are at most 32, for 20,000 of all sizes else. (An operator's constructor asks
/// for 32.) Lengths are those of the whole sequences, and checked, too.
template <mask Mask>
[[nodiscard]] std::string mask_error(const Mask& mask, std::int64_t query_length, std::int64_t key_length) {
  std::string wrong = detail::wrong_parameters(mask, query_length, key_length);
  if (!wrong.empty()) return wrong;
  detail::mask_check<Mask> check{mask, query_length, key_length};
  return query_length <= 32 && key_length <= 32 ? check.all() : check.samples(20'000);
}

}  // namespace orrery
