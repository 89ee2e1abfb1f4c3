// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "orrery/detail/number_digest.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// The index of the last of `count` + 1 ascending numbers, of which the first is 0, that is not larger than `position`:
/// the document of a position, given where documents begin; `count` behind the last one. About log2(count) steps
/// without a branch that depends on the numbers.
[[nodiscard]] constexpr int document_of(const std::int64_t* begins, int count, std::int64_t position) noexcept {
  int found = 0;
  for (int left = count + 1; left > 1;) {
    const int half = left / 2;
    found += begins[found + half] <= position ? half : 0;
    left -= half;
  }
  return found;
}

/// `documents`, with a mask inside of each. Table is where they begin: a `list`, which it owns, or the address of
/// one, as kernels on a device take it.
template <class Inner, class Table>
class document_mask {
 public:
  static constexpr bool is_documents = true;
  static constexpr bool rows_are_intervals = mask_of_intervals<Inner>;

  /// `table` is where the queries of documents begin, and where the last one ends; then the same of keys, if they are
  /// `apart`.
  constexpr document_mask(Table table, int count, bool apart, bool top_left, const Inner& inner)
      : table_(static_cast<Table&&>(table)), count_{count}, apart_{apart}, top_left_{top_left}, inner_{inner} {}

  /// The number of documents.
  [[nodiscard]] constexpr int size() const noexcept { return count_; }
  /// The tokens of all documents; what is behind them is padding.
  [[nodiscard]] constexpr std::int64_t queries() const noexcept { return query_begins()[count_]; }
  [[nodiscard]] constexpr std::int64_t keys() const noexcept { return key_begins()[count_]; }

  /// The same with the first query of a document beside its first key, where their numbers differ.
  [[nodiscard]] constexpr document_mask top_left() const {
    document_mask same = *this;
    same.top_left_ = apart_;
    return same;
  }
  /// The same with another mask inside.
  template <counts_in_documents Mask>
  [[nodiscard]] constexpr auto with(const Mask& mask) const {
    const auto both = inner_ & mask;
    return document_mask<std::remove_const_t<decltype(both)>, Table>{table_, count_, apart_, top_left_, both};
  }

  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const noexcept {
    const int document = document_of(query_begins(), count_, query);
    if (document == count_ || key < key_begins()[document] || key >= key_begins()[document + 1]) return false;
    if constexpr (std::same_as<Inner, full>) {
      return true;
    } else {
      return inner_.visible(query + shift_of(document), key - key_begins()[document]);
    }
  }

  /// Exact, as far as the mask inside is, but for rectangles over more than `most_asked` documents.
  [[nodiscard]] constexpr visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                              std::int64_t key_last) const noexcept {
    const int first_of_queries = document_of(query_begins(), count_, query_first);
    const int first_of_keys = document_of(key_begins(), count_, key_first);
    if (first_of_queries == count_ || first_of_keys == count_) return visibility::none;
    const int last_of_queries = document_of(query_begins(), count_, query_last);
    const int last_of_keys = document_of(key_begins(), count_, key_last);
    const int first = first_of_queries > first_of_keys ? first_of_queries : first_of_keys;
    const int last = last_of_queries < last_of_keys ? last_of_queries : last_of_keys;
    const bool one = first_of_queries == last_of_queries && first_of_keys == last_of_keys && first == last;
    if (first > last) return visibility::none;
    if constexpr (std::same_as<Inner, full>) {
      return one ? visibility::all : visibility::some;
    } else {
      for (int document = first; document <= last && document < count_; ++document) {
        if (document - first == most_asked) return visibility::some;
        const position_interval queries = position_interval{query_first, query_last} & queries_of(document);
        const position_interval keys = position_interval{key_first, key_last} & keys_in(document);
        const std::int64_t shift = shift_of(document);
        const std::int64_t begin = key_begins()[document];
        const visibility inside =
            inner_.classify(queries.first + shift, queries.last + shift, keys.first - begin, keys.last - begin);
        if (one) return inside;
        if (inside != visibility::none) return visibility::some;
      }
      return visibility::none;
    }
  }

  /// The smallest interval, if that of the mask inside is.
  [[nodiscard]] constexpr position_interval keys_of(std::int64_t query_first, std::int64_t query_last) const noexcept {
    const int first = document_of(query_begins(), count_, query_first);
    if (first == count_) return {};
    const int end = query_last == query_first ? first : document_of(query_begins(), count_, query_last);
    const int last = end < count_ ? end : count_ - 1;
    if constexpr (mask_with_keys_of<Inner> && !std::same_as<Inner, full>) {
      const position_interval queries{query_first, query_last};
      for (int document = first; document <= last; ++document) {
        const position_interval front = keys_of(document, queries);
        if (front.empty()) continue;
        for (int back = last; back > document; --back) {
          const position_interval keys = keys_of(back, queries);
          if (!keys.empty()) return {front.first, keys.last};
        }
        return front;
      }
      return {};
    } else {
      return {key_begins()[first], key_begins()[last + 1] - 1};
    }
  }

  /// How many documents of how many tokens, and a digest of their lengths.
  [[nodiscard]] std::string name() const {
    std::string text = "documents<" + std::to_string(count_) + " of " + std::to_string(queries());
    text += apart_ ? " queries and " + std::to_string(keys()) + " keys" : " tokens";
    text += ", digest " + digest_text(std::span{query_begins(), static_cast<std::size_t>(table_size())}) +
            (top_left_ ? ", top left>" : ">");
    if constexpr (!std::same_as<Inner, full>) text += " & " + std::string{inner_.name()};
    return text;
  }

  [[nodiscard]] std::string wrong_lengths(std::int64_t query_length, std::int64_t key_length) const {
    if (queries() > query_length) return too_long("queries", queries(), "length", query_length);
    if (keys() > key_length) return too_long("keys", keys(), "key_length", key_length);
    if constexpr (std::same_as<Inner, full>) {
      return "";
    } else {
      return wrong_lengths_of(inner_, query_length, key_length);
    }
  }

  /// For kernels on a device: see `mask_with_table`.
  [[nodiscard]] constexpr int table_size() const noexcept { return (apart_ ? 2 : 1) * (count_ + 1); }
  constexpr void write_table(std::int64_t* to) const noexcept {
    for (int i = 0; i < table_size(); ++i) to[i] = query_begins()[i];
  }
  [[nodiscard]] constexpr auto view(const std::int64_t* table) const {
    return document_mask<Inner, const std::int64_t*>{table, count_, apart_, top_left_, inner_};
  }

  constexpr bool operator==(const document_mask&) const = default;

 private:
  /// Of how many documents a rectangle is asked for.
  static constexpr int most_asked = 16;

  [[nodiscard]] constexpr const std::int64_t* query_begins() const noexcept { return &table_[0]; }
  [[nodiscard]] constexpr const std::int64_t* key_begins() const noexcept {
    return apart_ ? query_begins() + count_ + 1 : query_begins();
  }
  [[nodiscard]] constexpr position_interval queries_of(int document) const noexcept {
    return {query_begins()[document], query_begins()[document + 1] - 1};
  }
  [[nodiscard]] constexpr position_interval keys_in(int document) const noexcept {
    return {key_begins()[document], key_begins()[document + 1] - 1};
  }
  /// From a query's position to that within its document.
  [[nodiscard]] constexpr std::int64_t shift_of(int document) const noexcept {
    const std::int64_t begin = query_begins()[document];
    if (!apart_ || top_left_) return -begin;
    return (key_begins()[document + 1] - key_begins()[document]) - query_begins()[document + 1];
  }
  /// What those of the queries that are of the document see.
  [[nodiscard]] constexpr position_interval keys_of(int document, const position_interval& some) const noexcept {
    const position_interval queries = some & queries_of(document);
    const std::int64_t shift = shift_of(document);
    const std::int64_t begin = key_begins()[document];
    const position_interval inside = inner_.keys_of(queries.first + shift, queries.last + shift) &
                                     position_interval{0, key_begins()[document + 1] - begin - 1};
    return inside.empty() ? position_interval{} : position_interval{inside.first + begin, inside.last + begin};
  }

  [[nodiscard]] std::string too_long(const char* what, std::int64_t tokens, const char* name,
                                     std::int64_t length) const {
    return "the " + std::to_string(count_) + " documents have " + std::to_string(tokens) + " " + what + ", but " +
           name + " is " + std::to_string(length) +
           "; leave out documents, or make the sequence longer (what is behind the last document is padding, which "
           "sees "
           "nothing and is seen by nothing)";
  }

  Table table_;
  int count_;
  bool apart_;
  bool top_left_;
  Inner inner_;
};

}  // namespace orrery::detail
