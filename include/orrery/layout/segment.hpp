// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace orrery {

/// Global positions of consecutive local tokens, increasing: `count` tokens that begin at position `begin` and come in
/// runs of `run` neighbours, `stride` positions apart. A contiguous piece is one run (`run >= count`).
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

  constexpr void add(const segment& piece) noexcept {
    if (piece.count > 0) pieces_[size_++] = piece;
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

 private:
  segment pieces_[2];
  int size_ = 0;
};

}  // namespace orrery
