// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <stdexcept>

namespace orrery {

/// Global positions of consecutive local tokens, increasing: `count` tokens that begin at position `begin` and come in
/// runs of `run` neighbours, `stride` positions apart (`stride >= run >= 1`). A contiguous piece is one run
/// (`run >= count`), whose stride does not matter.
struct segment {
  std::int64_t begin = 0;
  std::int64_t count = 0;
  std::int64_t run = 1;
  std::int64_t stride = 1;

  /// Global position of the segment's token `i`, 0 <= i < count.
  [[nodiscard]] constexpr std::int64_t position(std::int64_t i) const noexcept {
    return i < run ? begin + i : begin + i / run * stride + i % run;
  }

  constexpr bool operator==(const segment&) const = default;
};

/// The tokens of one shard in their local order: at most two segments, none of them empty, positions increasing.
class segments {
 public:
  constexpr segments() = default;

  static constexpr int most = 2;

  /// Appends a segment; an empty one is ignored. Throws `std::length_error` for a third one, so a function that may add
  /// one must not be `noexcept`; in a constant expression a third one does not compile.
  constexpr void add(const segment& piece) {
    if (piece.count <= 0) return;
    if (size_ == most) {
      throw std::length_error{"orrery: segments::add: a shard has at most two segments; merge segments that touch"};
    }
    pieces_[size_++] = piece;
  }

  [[nodiscard]] constexpr const segment* begin() const noexcept { return pieces_; }
  [[nodiscard]] constexpr const segment* end() const noexcept { return pieces_ + size_; }
  [[nodiscard]] constexpr int size() const noexcept { return size_; }
  [[nodiscard]] constexpr const segment& operator[](int i) const noexcept { return pieces_[i]; }

  /// Number of tokens in the shard.
  [[nodiscard]] constexpr std::int64_t tokens() const noexcept {
    std::int64_t sum = 0;
    for (const segment& piece : *this) sum += piece.count;
    return sum;
  }

  /// Global position of the shard's token `i`, 0 <= i < tokens().
  [[nodiscard]] constexpr std::int64_t position(std::int64_t i) const noexcept {
    return size_ > 1 && i >= pieces_[0].count ? pieces_[1].position(i - pieces_[0].count) : pieces_[0].position(i);
  }

  constexpr bool operator==(const segments&) const = default;

 private:
  segment pieces_[most];
  int size_ = 0;
};

}  // namespace orrery
