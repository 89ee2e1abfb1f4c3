// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>

#include "orrery/detail/integer_range.hpp"
#include "orrery/mask/detail/interval_mask.hpp"
#include "orrery/mask/intersection.hpp"  // IWYU pragma: export
#include "orrery/schedule/list.hpp"

namespace orrery {

/// Each key is visible to one interval of queries: key j to the queries i with first[j] <= i < end[j]. So are masks of
/// many kinds given in two numbers for each key: prefixes that differ from document to document, images that are seen
/// by questions about them, a shared prompt before several answers.
///
///     const orrery::intervals prompt_and_answers{first, end};  // two ranges of integers, of equal sizes
///
/// A key with first[j] == end[j] is seen by no query, nor is one behind those that are given (padding). Intervals are
/// half open, as positions in FlashMask are (arXiv 2410.01359). FlashMask gives a key up to two intervals of queries
/// that it hides; what it hides above the diagonal is `causal` here, and
///
///     orrery::intervals::causal_until(end)                     // key j is visible to the queries j, ..., end[j] - 1
///
/// is its causal mask with the start rows `end`. A mask in which a key has several intervals of queries is none of
/// these: write one of your own, which may hold several `intervals`.
///
/// Holds 16 bytes for each key, and half a byte more; copies copy them. `visible` takes two loads; `classify` a step
/// for each 64 keys and for each key at the ends. The name has the number of keys and a digest of the intervals.
/// Kernels on a device take a view (see `mask_with_table`).
class intervals : public detail::interval_mask<schedule::list<std::int64_t>> {
 public:
  /// For each key the first query that sees it and the one behind the last: 0 <= first[j] <= end[j] <= the query
  /// length, which an operator checks, as it does that there are not more than keys. Throws `std::invalid_argument`.
  template <detail::integer_range First, detail::integer_range End>
  constexpr intervals(const First& first, const End& end) : intervals{table{first, end}} {}

  /// Key j is visible to the queries from j to before end[j]; j <= end[j]. Throws `std::invalid_argument`.
  template <detail::integer_range End>
  [[nodiscard]] static constexpr intervals causal_until(const End& end) {
    list first;
    for (int key = 0; std::cmp_less(key, std::size(end)); ++key) first.push_back(key);
    return {first, end};
  }

  constexpr bool operator==(const intervals&) const = default;

 private:
  using list = schedule::list<std::int64_t>;

  static constexpr std::int64_t most_keys = std::int64_t{1} << 29;
  static constexpr std::int64_t most_position = std::int64_t{1} << 62;

  [[noreturn]] static void refuse(const std::string& why) { throw std::invalid_argument{"orrery: intervals: " + why}; }

  /// The numbers of `interval_mask`.
  struct table {
    list numbers;
    std::int64_t keys = 0;
    std::int64_t end = 0;

    template <class First, class End>
    constexpr table(const First& first, const End& ends) {
      const auto size = std::size(first);
      if (!std::cmp_equal(size, std::size(ends))) {
        refuse("first has " + std::to_string(size) + " numbers and end has " + std::to_string(std::size(ends)) +
               ", expected as many: one for each key");
      }
      if (std::cmp_less(size, 1) || std::cmp_greater(size, most_keys)) {
        refuse("first has " + std::to_string(size) + " numbers, expected one for each key, at most 2^29");
      }
      keys = static_cast<std::int64_t>(size);
      numbers = list{static_cast<int>(size_of_table(keys))};
      std::int64_t* to = numbers.begin();
      auto of_end = std::begin(ends);
      for (const auto begin : first) {
        check(static_cast<std::int64_t>(to - numbers.begin()) / 2, begin, *of_end);
        *to++ = static_cast<std::int64_t>(begin);
        *to++ = static_cast<std::int64_t>(*of_end++);
      }
      for (std::int64_t key = 0; key < keys; key += group) to = summarize(key, to);
    }

    template <class Begin, class End>
    static constexpr void check(std::int64_t key, Begin begin, End end) {
      const auto element = [&](const char* name, auto is) {
        return std::string{name} + "[" + std::to_string(key) + "] is " + std::to_string(is);
      };
      if (std::cmp_less(begin, 0)) refuse(element("first", begin) + ", expected at least 0");
      if (std::cmp_less(end, begin)) {
        refuse(element("end", end) + ", before " + element("first", begin) +
               ", expected at least as much; equal ones hide the key from all queries");
      }
      if (std::cmp_greater(end, most_position)) refuse(element("end", end) + ", expected at most 2^62");
    }

    /// Writes the summary of the keys from this one on; returns the address behind it.
    constexpr std::int64_t* summarize(std::int64_t key, std::int64_t* to) {
      std::int64_t of[summary_size]{};
      of[first_begin] = of[first_end] = most_position;
      for (std::int64_t i = key; i < keys && i < key + group; ++i) {
        const std::int64_t begin = numbers.begin()[2 * i];
        const std::int64_t behind = numbers.begin()[2 * i + 1];
        if (begin == behind) {
          of[first_end] = 0;
          continue;
        }
        if (begin < of[first_begin]) of[first_begin] = begin;
        if (begin > of[last_begin]) of[last_begin] = begin;
        if (behind < of[first_end]) of[first_end] = behind;
        if (behind > of[last_end]) of[last_end] = behind;
      }
      if (of[last_end] > end) end = of[last_end];
      for (const std::int64_t number : of) *to++ = number;
      return to;
    }
  };

  constexpr explicit intervals(table of) : interval_mask{std::move(of.numbers), of.keys, of.end} {}
};

}  // namespace orrery
