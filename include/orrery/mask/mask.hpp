// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <string>

namespace orrery {

/// What a mask says of a rectangle of (query, key) pairs: no pair, some pairs or all pairs are visible.
enum class visibility : std::uint8_t { none, some, all };

/// A mask is a functor over *global* positions, so that it means the same under every topology and layout. Positions
/// are never negative.
///
/// - `visible(query, key)`: may this query see this key?
/// - `classify(query_first, query_last, key_first, key_last)`: the same for all pairs of two closed intervals of
///   positions. It may answer `some` whenever it does not know; `none` and `all` are promises, and what a kernel skips
///   or computes without testing pairs depends on them.
/// - `name()`: what ranks compare at construction and what messages print; it holds every parameter.
template <class Mask>
concept mask = std::copy_constructible<Mask> && requires(const Mask& m, std::int64_t position) {
  { m.visible(position, position) } -> std::same_as<bool>;
  { m.classify(position, position, position, position) } -> std::same_as<visibility>;
  { m.name() } -> std::convertible_to<std::string>;
};

/// A mask may also say that it is a diagonal and nothing else: a query at position i sees exactly the keys at positions
/// j with j - i <= m.diagonal(). Kernels that compute no masks pair by pair (`device_cudnn`) depend on it.
template <class Mask>
concept diagonal_mask = mask<Mask> && requires(const Mask& m) {
  { m.diagonal() } -> std::convertible_to<std::int64_t>;
};

/// Every query sees every key.
struct full {
  [[nodiscard]] static constexpr bool visible(std::int64_t, std::int64_t) noexcept { return true; }
  [[nodiscard]] static constexpr visibility classify(std::int64_t, std::int64_t, std::int64_t, std::int64_t) noexcept {
    return visibility::all;
  }
  [[nodiscard]] static std::string name() { return "full"; }
};

/// A query at position i sees the keys at positions <= i + offset.
///
/// With the default offset the first query meets the first key (top-left alignment). Where queries are the last part
/// of a longer key sequence (bottom-right alignment), offset = key length - query length. Every offset is valid: with
/// the largest a query sees every key, with the smallest none.
struct causal {
  std::int64_t offset = 0;

  [[nodiscard]] constexpr bool visible(std::int64_t query, std::int64_t key) const noexcept {
    return key <= last_visible(query);
  }
  [[nodiscard]] constexpr visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                              std::int64_t key_last) const noexcept {
    if (key_last <= last_visible(query_first)) return visibility::all;
    if (key_first > last_visible(query_last)) return visibility::none;
    return visibility::some;
  }
  [[nodiscard]] constexpr std::int64_t diagonal() const noexcept { return offset; }
  [[nodiscard]] std::string name() const {
    return offset == 0 ? "causal" : "causal with offset " + std::to_string(offset);
  }

 private:
  /// The last key that a query sees; not key - query <= offset, which would take a subtraction for each pair.
  [[nodiscard]] constexpr std::int64_t last_visible(std::int64_t query) const noexcept {
    return offset <= INT64_MAX - query ? query + offset : INT64_MAX;
  }
};

}  // namespace orrery
