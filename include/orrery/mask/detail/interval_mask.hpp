// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "orrery/detail/number_digest.hpp"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// `intervals`. Table is a `list`, which it owns, or the address of one, as kernels on a device take it: of each key
/// where its queries begin and end, and then of each `group` of keys `summary` numbers.
template <class Table>
class interval_mask {
 public:
  /// Keys of which rectangles are asked together.
  static constexpr std::int64_t group = 64;

  constexpr interval_mask(Table table, std::int64_t keys, std::int64_t end)
      : table_(static_cast<Table&&>(table)), keys_{keys}, end_{end} {}

  /// The number of keys; those behind them are padding, which no query sees.
  [[nodiscard]] constexpr std::int64_t keys() const noexcept { return keys_; }

  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const noexcept {
    return key < keys_ && begin_of(key) <= query && query < end_of(key);
  }

  /// Exact. Cost: a step for each group of keys, and for each key of at most two.
  [[nodiscard]] constexpr visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                              std::int64_t key_last) const noexcept {
    if (key_first >= keys_) return visibility::none;
    bool all = key_last < keys_;
    bool none = true;
    const std::int64_t end = all ? key_last + 1 : keys_;
    for (std::int64_t key = key_first; key < end && (all || none);) {
      if (key % group == 0 && end - key >= group) {
        const std::int64_t* const of = group_of(key);
        all = all && of[last_begin] <= query_first && query_last < of[first_end];
        // Within a group that may be seen, each key is asked.
        if (none && of[first_begin] <= query_last && query_first < of[last_end]) {
          for (std::int64_t i = key; i < key + group && none; ++i) none = !meets(i, query_first, query_last);
        }
        key += group;
      } else {
        all = all && begin_of(key) <= query_first && query_last < end_of(key);
        none = none && !meets(key, query_first, query_last);
        ++key;
      }
    }
    return all ? visibility::all : none ? visibility::none : visibility::some;
  }

  /// The smallest interval. Cost: as that of `classify`, of keys outside of it.
  [[nodiscard]] constexpr position_interval keys_of(std::int64_t query_first, std::int64_t query_last) const noexcept {
    std::int64_t first = 0;
    while (first < keys_ && !meets(first, query_first, query_last)) {
      first += first % group == 0 && !group_meets(first, query_first, query_last) ? group : 1;
    }
    if (first >= keys_) return {};
    std::int64_t last = keys_ - 1;
    while (!meets(last, query_first, query_last)) {
      last -= last % group == group - 1 && !group_meets(last, query_first, query_last) ? group : 1;
    }
    return {first, last};
  }

  [[nodiscard]] std::string name() const {
    return "intervals<" + std::to_string(keys_) + " keys, digest " +
           digest_text(std::span{&table_[0], static_cast<std::size_t>(table_size())}) + ">";
  }

  [[nodiscard]] std::string wrong_lengths(std::int64_t query_length, std::int64_t key_length) const {
    if (keys_ > key_length) {
      return "the intervals are of " + std::to_string(keys_) + " keys, but key_length is " +
             std::to_string(key_length) + "; expected at most one for each key";
    }
    if (end_ > query_length) {
      return "an interval ends before query " + std::to_string(end_) + ", but length is " +
             std::to_string(query_length) + "; expected intervals of queries of the sequence";
    }
    return "";
  }

  /// For kernels on a device: see `mask_with_table`.
  [[nodiscard]] constexpr int table_size() const noexcept { return static_cast<int>(size_of_table(keys_)); }
  constexpr void write_table(std::int64_t* to) const noexcept {
    for (int i = 0; i < table_size(); ++i) to[i] = table_[i];
  }
  [[nodiscard]] constexpr auto view(const std::int64_t* table) const {
    return interval_mask<const std::int64_t*>{table, keys_, end_};
  }

  constexpr bool operator==(const interval_mask&) const = default;

 protected:
  /// The numbers of a group: the first and last query at which intervals begin, and the same of ends. Of keys that no
  /// query sees only `first_end`, which is then 0, so that the group is not called wholly visible.
  enum summary : int { first_begin, last_begin, first_end, last_end, summary_size };

  [[nodiscard]] static constexpr std::int64_t size_of_table(std::int64_t keys) noexcept {
    return 2 * keys + (keys + group - 1) / group * summary_size;
  }

 private:
  [[nodiscard]] constexpr std::int64_t begin_of(std::int64_t key) const noexcept { return (&table_[0])[2 * key]; }
  [[nodiscard]] constexpr std::int64_t end_of(std::int64_t key) const noexcept { return (&table_[0])[2 * key + 1]; }
  [[nodiscard]] constexpr const std::int64_t* group_of(std::int64_t key) const noexcept {
    return &table_[0] + 2 * keys_ + key / group * summary_size;
  }
  [[nodiscard]] constexpr bool meets(std::int64_t key, std::int64_t query_first,
                                     std::int64_t query_last) const noexcept {
    const std::int64_t begin = begin_of(key);
    const std::int64_t end = end_of(key);
    return begin <= query_last && query_first < end && begin < end;
  }
  [[nodiscard]] constexpr bool group_meets(std::int64_t key, std::int64_t query_first,
                                           std::int64_t query_last) const noexcept {
    const std::int64_t* const of = group_of(key);
    return of[first_begin] <= query_last && query_first < of[last_end];
  }

  Table table_;
  std::int64_t keys_;
  std::int64_t end_;  // of all intervals
};

}  // namespace orrery::detail
