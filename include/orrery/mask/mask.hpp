// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

namespace orrery {

/// What a mask says of a rectangle of (query, key) pairs: no pair, some pairs or all pairs are visible.
enum class visibility : std::uint8_t { none, some, all };

/// A mask is a functor over *global* positions, so that it means the same under every topology and layout. Positions
/// are never negative.
///
/// - `visible(query, key)`: true if this query may see this key.
/// - `classify(query_first, query_last, key_first, key_last)`: the same for all pairs of two closed intervals of
///   positions. It may answer `some` whenever it does not know; `none` and `all` are promises, and what a kernel skips
///   or computes without testing pairs depends on them. Operators check samples of them when they are made (see
///   `mask_error`).
/// - `name()`: what ranks compare at construction and what messages print; it holds every parameter.
///
/// Optional members:
///
/// - `keys_of(query_first, query_last)`: see `mask_with_keys_of`;
/// - `diagonal()`: see `diagonal_mask`;
/// - `table_size()`, `write_table(to)`, `view(table)`: see `mask_with_table`;
/// - `wrong_lengths(query_length, key_length)`: empty, or what is wrong with the mask's parameters for sequences of
///   these lengths; an operator's constructor throws it.
/// - `static constexpr bool counts_in_documents = true`: in `documents{...} & mask`, positions count from the beginning
///   of their document; see `documents`.
///
/// Masks are combined by `&`: see `intersection`.
template <class Mask>
concept mask = std::copy_constructible<Mask> && requires(const Mask& m, std::int64_t position) {
  { m.visible(position, position) } -> std::same_as<bool>;
  { m.classify(position, position, position, position) } -> std::same_as<visibility>;
  { m.name() } -> std::convertible_to<std::string>;
};

/// A mask may also say that it is a diagonal and nothing else: a query at position i sees exactly the keys at positions
/// j with j - i <= m.diagonal(). Kernels that compute no masks pair by pair (`device_cudnn`) depend on it. A mask that
/// knows only at run time whether it is one says so by `is_diagonal()`.
template <class Mask>
concept diagonal_mask = mask<Mask> && requires(const Mask& m) {
  { m.diagonal() } -> std::convertible_to<std::int64_t>;
};

/// A closed interval of positions, [first, last]; empty if last < first, as it is by default.
struct position_interval {
  std::int64_t first = 0;
  std::int64_t last = -1;

  [[nodiscard]] constexpr bool empty() const noexcept { return last < first; }
  [[nodiscard]] constexpr bool contains(std::int64_t position) const noexcept {
    return first <= position && position <= last;
  }

  /// The positions that are in both.
  friend constexpr position_interval operator&(const position_interval& a, const position_interval& b) noexcept {
    return {a.first > b.first ? a.first : b.first, a.last < b.last ? a.last : b.last};
  }
  /// The smallest interval that contains both.
  [[nodiscard]] static constexpr position_interval hull(const position_interval& a,
                                                        const position_interval& b) noexcept {
    if (a.empty()) return b;
    if (b.empty()) return a;
    return {a.first < b.first ? a.first : b.first, a.last > b.last ? a.last : b.last};
  }

  constexpr bool operator==(const position_interval&) const = default;
};

/// A mask may also answer the question which keys some queries see, so that a plan of S shards takes S questions
/// instead of S² rectangles, and kernels find the keys of a row without asking for each.
///
/// - `keys_of(query_first, query_last)`: an interval that contains every key that a query of this closed interval sees;
///   best the smallest, empty if there is none. That other keys are hidden is a promise. A key sequence may end before
///   the interval does: `full` answers [0, INT64_MAX].
/// - `static constexpr bool rows_are_intervals = true`, optional: `keys_of(i, i)` is exactly what the query i sees.
///   Kernels then ask once for a query and not once for a pair.
template <class Mask>
concept mask_with_keys_of = mask<Mask> && requires(const Mask& m, std::int64_t position) {
  { m.keys_of(position, position) } -> std::same_as<position_interval>;
};

/// Kernels on a device take masks by value, trivially copyable. A mask that has more to say than fits a kernel's
/// arguments keeps it in a table of numbers, which a plan copies to the device once, when an operator is made:
///
/// - `table_size()`: how many numbers; `write_table(to)` writes them, all `std::int64_t`;
/// - `view(table)`: the same mask, as a trivially copyable one that reads the table at this address.
template <class Mask>
concept mask_with_table = mask<Mask> && requires(const Mask& m, std::int64_t* to, const std::int64_t* table) {
  { m.table_size() } -> std::convertible_to<std::int64_t>;
  m.write_table(to);
  { m.view(table) } -> mask;
};

}  // namespace orrery

namespace orrery::detail {

/// True if `keys_of(i, i)` is exactly what the query i sees.
template <class Mask>
concept mask_of_intervals = mask_with_keys_of<Mask> && requires {
  requires static_cast<bool>(Mask::rows_are_intervals);
};

/// True if kernels on a device may have this mask.
template <class Mask>
[[nodiscard]] constexpr bool is_mask_for_devices() noexcept {
  if constexpr (mask_with_table<Mask>) {
    return std::is_trivially_copyable_v<decltype(std::declval<const Mask&>().view(nullptr))>;
  } else {
    return std::is_trivially_copyable_v<Mask>;
  }
}

/// True if positions count from the beginning of their document in `documents & mask`.
template <class Mask>
concept counts_in_documents = requires {
  requires static_cast<bool>(Mask::counts_in_documents);
};

/// True of `documents`, alone or with masks inside.
template <class Mask>
concept packs_documents = requires {
  requires static_cast<bool>(Mask::is_documents);
};

/// True of these and of intersections with one.
template <class Mask>
concept contains_documents = packs_documents<Mask> || requires {
  requires static_cast<bool>(Mask::contains_documents);
};

/// Empty, or what is wrong with the mask's parameters for these sequences.
template <class Mask>
[[nodiscard]] std::string wrong_lengths_of(const Mask& mask, std::int64_t query_length, std::int64_t key_length) {
  if constexpr (requires { mask.wrong_lengths(query_length, key_length); }) {
    return mask.wrong_lengths(query_length, key_length);
  } else {
    return "";
  }
}

/// The sum, or the largest or smallest number if that is beyond.
[[nodiscard]] constexpr std::int64_t saturating_sum(std::int64_t a, std::int64_t b) noexcept {
  if (b >= 0) return a <= INT64_MAX - b ? a + b : INT64_MAX;
  return a >= INT64_MIN - b ? a + b : INT64_MIN;
}

/// True if this mask is nothing but the diagonal that it names.
template <diagonal_mask Mask>
[[nodiscard]] constexpr bool is_diagonal(const Mask& mask) noexcept {
  if constexpr (requires { mask.is_diagonal(); }) {
    return mask.is_diagonal();
  } else {
    return true;
  }
}

}  // namespace orrery::detail
