// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <iterator>

#include "orrery/layout/segment.hpp"

namespace orrery {

/// The global positions of a shard's tokens in their local order, increasing: a range of `std::int64_t`, for loops and
/// standard algorithms.
///
///     for (const std::int64_t p : attend.query_positions()) rotate(x++, p);
///
/// Stores the shard's segments and computes the rest: it is small, and copied cheaply. Iterators are forward iterators
/// and refer to the range that they come from.
class token_positions {
 public:
  class iterator;
  using value_type = std::int64_t;
  using const_iterator = iterator;

  constexpr token_positions() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): a shard is the positions of its tokens
  constexpr token_positions(const orrery::segments& shard) noexcept : segments_{shard}, size_{shard.tokens()} {}

  [[nodiscard]] constexpr iterator begin() const noexcept;
  [[nodiscard]] constexpr iterator end() const noexcept;

  /// The number of tokens.
  [[nodiscard]] constexpr std::int64_t size() const noexcept { return size_; }
  [[nodiscard]] constexpr bool empty() const noexcept { return size_ == 0; }

  /// The global position of the shard's token `i`, 0 <= i < size().
  [[nodiscard]] constexpr std::int64_t operator[](std::int64_t i) const noexcept { return segments_.position(i); }

  /// The same as at most two regular pieces, for code that treats runs of neighbours together.
  [[nodiscard]] constexpr const orrery::segments& segments() const noexcept { return segments_; }

  constexpr bool operator==(const token_positions&) const = default;

 private:
  orrery::segments segments_;
  std::int64_t size_ = 0;
};

/// A token of the range, by its local index.
class token_positions::iterator {
 public:
  using value_type = std::int64_t;
  using difference_type = std::ptrdiff_t;
  using reference = std::int64_t;
  using pointer = void;
  using iterator_category = std::input_iterator_tag;  // C++17's forward iterators return references
  using iterator_concept = std::forward_iterator_tag;

  constexpr iterator() = default;
  constexpr iterator(const token_positions& of, std::int64_t token) noexcept : of_{&of}, token_{token} {}

  [[nodiscard]] constexpr std::int64_t operator*() const noexcept { return (*of_)[token_]; }
  constexpr iterator& operator++() noexcept {
    ++token_;
    return *this;
  }
  constexpr iterator operator++(int) noexcept {
    const iterator before = *this;
    ++token_;
    return before;
  }
  [[nodiscard]] constexpr bool operator==(const iterator& other) const noexcept { return token_ == other.token_; }

 private:
  const token_positions* of_ = nullptr;
  std::int64_t token_ = 0;
};

constexpr token_positions::iterator token_positions::begin() const noexcept { return {*this, 0}; }
constexpr token_positions::iterator token_positions::end() const noexcept { return {*this, size_}; }

}  // namespace orrery
