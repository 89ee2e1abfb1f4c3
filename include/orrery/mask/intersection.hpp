// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>

#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// 0 of a mask without a table.
template <class Mask>
[[nodiscard]] constexpr std::int64_t table_size_of(const Mask& mask) {
  if constexpr (mask_with_table<Mask>) {
    return mask.table_size();
  } else {
    return 0;
  }
}

/// A mask without a table is its own view.
template <class Mask>
[[nodiscard]] constexpr auto view_of(const Mask& mask, const std::int64_t* table) {
  if constexpr (mask_with_table<Mask>) {
    return mask.view(table);
  } else {
    return mask;
  }
}

}  // namespace orrery::detail

namespace orrery {

/// The pairs that both masks let be seen: the type of `first & second`.
///
///     const auto sliding = orrery::causal{} & orrery::window{.left = 4095};
///
/// Masks of your own combine with these as they are; `&` of two of your own is `orrery::intersection{a, b}`, since a
/// compiler finds the operator only where one operand is of this namespace.
///
/// `classify` answers `all` and `none` where its operands' answers say so, and `keys_of` the intersection of their
/// intervals, or the one that there is.
template <mask First, mask Second>
struct intersection {
  First first;
  Second second;

  static constexpr bool rows_are_intervals = detail::mask_of_intervals<First> && detail::mask_of_intervals<Second>;
  static constexpr bool counts_in_documents = detail::counts_in_documents<First> && detail::counts_in_documents<Second>;
  static constexpr bool contains_documents = detail::contains_documents<First> || detail::contains_documents<Second>;

  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const {
    return first.visible(query, key) && second.visible(query, key);
  }
  [[nodiscard]] constexpr visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                              std::int64_t key_last) const {
    const visibility of_first = first.classify(query_first, query_last, key_first, key_last);
    if (of_first == visibility::none) return visibility::none;
    const visibility of_second = second.classify(query_first, query_last, key_first, key_last);
    return of_first < of_second ? of_first : of_second;
  }
  [[nodiscard]] constexpr position_interval keys_of(std::int64_t query_first, std::int64_t query_last) const
      requires(mask_with_keys_of<First> || mask_with_keys_of<Second>) {
    position_interval keys{0, INT64_MAX};
    if constexpr (mask_with_keys_of<First>) keys = first.keys_of(query_first, query_last);
    if constexpr (mask_with_keys_of<Second>) keys = keys & second.keys_of(query_first, query_last);
    return keys;
  }
  [[nodiscard]] constexpr std::int64_t table_size() const requires(mask_with_table<First> || mask_with_table<Second>) {
    return detail::table_size_of(first) + detail::table_size_of(second);
  }
  constexpr void write_table(std::int64_t* to) const requires(mask_with_table<First> || mask_with_table<Second>) {
    if constexpr (mask_with_table<First>) first.write_table(to);
    if constexpr (mask_with_table<Second>) second.write_table(to + detail::table_size_of(first));
  }
  [[nodiscard]] constexpr auto view(const std::int64_t* table) const
      requires(mask_with_table<First> || mask_with_table<Second>) {
    const auto of_first = detail::view_of(first, table);
    const auto of_second = detail::view_of(second, table + detail::table_size_of(first));
    return intersection<std::remove_const_t<decltype(of_first)>, std::remove_const_t<decltype(of_second)>>{of_first,
                                                                                                           of_second};
  }
  [[nodiscard]] constexpr std::int64_t diagonal() const requires(diagonal_mask<First>&& diagonal_mask<Second>) {
    return first.diagonal() < second.diagonal() ? first.diagonal() : second.diagonal();
  }
  [[nodiscard]] constexpr bool is_diagonal() const requires(diagonal_mask<First>&& diagonal_mask<Second>) {
    return detail::is_diagonal(first) && detail::is_diagonal(second);
  }
  [[nodiscard]] std::string name() const { return std::string{first.name()} + " & " + std::string{second.name()}; }
  [[nodiscard]] std::string wrong_lengths(std::int64_t query_length, std::int64_t key_length) const {
    const std::string wrong = detail::wrong_lengths_of(first, query_length, key_length);
    return wrong.empty() ? detail::wrong_lengths_of(second, query_length, key_length) : wrong;
  }

  constexpr bool operator==(const intersection&) const = default;
};
template <class First, class Second>
intersection(First, Second) -> intersection<First, Second>;

}  // namespace orrery

namespace orrery::detail {

template <class Mask>
inline constexpr bool is_intersection = false;
template <class First, class Second>
inline constexpr bool is_intersection<intersection<First, Second>> = true;

}  // namespace orrery::detail

namespace orrery {

/// The pairs that both masks let be seen, as an `intersection`; `full{} & mask` is `mask`. With `documents`, masks
/// whose positions count from the beginning of a document go inside: see `documents`. The order of operands does not
/// matter.
template <mask First, mask Second>
[[nodiscard]] constexpr auto operator&(const First& first, const Second& second) {
  if constexpr (std::same_as<First, full>) {
    return second;
  } else if constexpr (std::same_as<Second, full>) {
    return first;
  } else if constexpr (detail::packs_documents<First> && detail::counts_in_documents<Second>) {
    return first.with(second);
  } else if constexpr (detail::counts_in_documents<First> && detail::packs_documents<Second>) {
    return second.with(first);
  } else if constexpr (detail::contains_documents<First> && detail::counts_in_documents<Second>) {
    if constexpr (detail::contains_documents<decltype(first.first)>) {
      return intersection{first.first & second, first.second};
    } else {
      return intersection{first.first, first.second & second};
    }
  } else if constexpr (detail::counts_in_documents<First> && detail::contains_documents<Second>) {
    return second & first;
  } else if constexpr (detail::contains_documents<First> && detail::is_intersection<Second>) {
    return first & second.first & second.second;
  } else if constexpr (detail::is_intersection<First> && detail::contains_documents<Second>) {
    return second & first.first & first.second;
  } else {
    return intersection<First, Second>{first, second};
  }
}

}  // namespace orrery
