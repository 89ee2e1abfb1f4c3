// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>

#include "orrery/layout/segment.hpp"
#include "orrery/schedule/list.hpp"

namespace orrery {

/// The global positions of a shard's tokens in their local order, increasing: a range of `std::int64_t`, for loops and
/// standard algorithms.
///
///     for (const std::int64_t p : attend.query_positions()) rotate(x++, p);
///
/// Stores the shard's segments, of which most layouts have one or two, and computes the rest. Iterators are forward
/// iterators and refer to the range that they come from. A loop takes constant time for each token, `[]` time that is
/// logarithmic in the number of segments.
class token_positions {
 public:
  class iterator;
  using value_type = std::int64_t;
  using const_iterator = iterator;

  constexpr token_positions() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): a shard is the positions of its tokens
  constexpr token_positions(const orrery::segments& shard) {
    for (const segment& piece : shard) append(piece);
  }
  /// Of a shard's chunks, one after the other; segments that touch become one.
  constexpr explicit token_positions(std::span<const orrery::segments> chunks) {
    for (const orrery::segments& chunk : chunks) {
      for (const segment& piece : chunk) {
        if (!pieces_.empty() && continues(pieces_.back(), piece)) {
          size_ += piece.count;
        } else {
          append(piece);
        }
      }
    }
  }

  [[nodiscard]] constexpr iterator begin() const noexcept;
  [[nodiscard]] constexpr iterator end() const noexcept;

  /// The number of tokens.
  [[nodiscard]] constexpr std::int64_t size() const noexcept { return size_; }
  [[nodiscard]] constexpr bool empty() const noexcept { return size_ == 0; }

  /// The global position of the shard's token `i`, 0 <= i < size().
  [[nodiscard]] constexpr std::int64_t operator[](std::int64_t i) const noexcept {
    int first = 0;
    for (int last = pieces_.size() - 1; first < last;) {
      const int middle = first + (last - first + 1) / 2;
      if (firsts_[middle] <= i) {
        first = middle;
      } else {
        last = middle - 1;
      }
    }
    return pieces_[first].position(i - firsts_[first]);
  }

  /// The same as regular pieces, none of them empty, for code that treats runs of neighbours together.
  [[nodiscard]] constexpr std::span<const segment> segments() const noexcept {
    return {pieces_.begin(), static_cast<std::size_t>(pieces_.size())};
  }

  constexpr bool operator==(const token_positions&) const = default;

 private:
  constexpr void append(const segment& piece) {
    firsts_.push_back(size_);
    pieces_.push_back(piece);
    size_ += piece.count;
  }

  /// If the second segment goes on where the first one ends, joins it to the first.
  static constexpr bool continues(segment& before, const segment& next) {
    const bool one_run = before.run >= before.count && next.run >= next.count;
    if (one_run && next.begin == before.begin + before.count) {
      before.count += next.count;
      before.run = before.stride = before.count;
      return true;
    }
    if (one_run || before.run != next.run || before.stride != next.stride || before.count % before.run != 0 ||
        next.begin != before.begin + before.count / before.run * before.stride)
      return false;
    before.count += next.count;
    return true;
  }

  schedule::list<segment> pieces_;
  schedule::list<std::int64_t> firsts_;  // the first token of each
  std::int64_t size_ = 0;
};

/// A token of the range.
class token_positions::iterator {
 public:
  using value_type = std::int64_t;
  using difference_type = std::ptrdiff_t;
  using reference = std::int64_t;
  using pointer = void;
  using iterator_category = std::input_iterator_tag;  // C++17's forward iterators return references
  using iterator_concept = std::forward_iterator_tag;

  constexpr iterator() = default;
  constexpr iterator(const token_positions& of, std::int64_t token) noexcept
      : piece_{of.pieces_.items}, token_{token} {}

  [[nodiscard]] constexpr std::int64_t operator*() const noexcept { return piece_->position(in_piece_); }
  constexpr iterator& operator++() noexcept {
    ++token_;
    if (++in_piece_ == piece_->count) {
      ++piece_;
      in_piece_ = 0;
    }
    return *this;
  }
  constexpr iterator operator++(int) noexcept {
    const iterator before = *this;
    ++*this;
    return before;
  }
  [[nodiscard]] constexpr bool operator==(const iterator& other) const noexcept { return token_ == other.token_; }

 private:
  const segment* piece_ = nullptr;
  std::int64_t in_piece_ = 0;
  std::int64_t token_ = 0;
};

constexpr token_positions::iterator token_positions::begin() const noexcept { return {*this, 0}; }
constexpr token_positions::iterator token_positions::end() const noexcept { return {*this, size_}; }

}  // namespace orrery
