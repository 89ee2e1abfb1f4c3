// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/layout/segment.hpp"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// Consecutive tokens of one segment of a shard.
struct token_block {
  segment piece;
  std::int64_t offset = 0;  ///< of the first token within the segment
  std::int64_t first = 0;   ///< of the first token within the shard
  std::int64_t count = 0;

  /// Global position of the block's token `i`.
  [[nodiscard]] constexpr std::int64_t position(std::int64_t i) const noexcept { return piece.position(offset + i); }

  /// How many of the block's tokens are at smaller positions than this one.
  [[nodiscard]] constexpr std::int64_t tokens_before(std::int64_t position) const noexcept {
    std::int64_t tokens = position - piece.begin;
    if (position <= piece.begin) {
      tokens = 0;
    } else if (piece.run < piece.count) {
      const std::int64_t rest = tokens % piece.stride;
      tokens = tokens / piece.stride * piece.run + (rest < piece.run ? rest : piece.run);
    }
    tokens -= offset;
    return tokens < 0 ? 0 : tokens < count ? tokens : count;
  }
};

/// Tokens [first, last) of a block.
struct token_range {
  std::int64_t first = 0;
  std::int64_t last = 0;
};

/// A block of `count` tokens without those groups of `granule` tokens at both its ends of which nothing is visible:
/// under a causal mask half of a block on the diagonal is empty. classify(first, count) says what is visible of a
/// group.
template <class Classify>
[[nodiscard]] constexpr token_range without_invisible_ends(std::int64_t count, std::int64_t granule,
                                                           const Classify& classify) {
  const auto visible = [&](std::int64_t group) {
    const std::int64_t left = count - group;
    return classify(group, left < granule ? left : granule) != visibility::none;
  };
  token_range some{0, count};
  while (some.first < some.last && !visible(some.first)) some.first += granule;
  if (some.first >= some.last) return {};
  for (std::int64_t group = (count - 1) / granule * granule; !visible(group); group -= granule) some.last = group;
  return some;
}

/// Which of a block's tokens, which are keys, the queries at positions from `first` to `last` see: an interval that has
/// all of them, and for one query no other.
template <mask_of_intervals Mask>
[[nodiscard]] constexpr token_range visible_tokens(const Mask& mask, std::int64_t first, std::int64_t last,
                                                   const token_block& keys) {
  const position_interval seen = mask.keys_of(first, last);
  if (seen.empty()) return {};
  const token_range some{keys.tokens_before(seen.first),
                         seen.last < INT64_MAX ? keys.tokens_before(seen.last + 1) : keys.count};
  return some.first < some.last ? some : token_range{};
}

/// A shard's tokens in blocks of at most `largest`, none of which crosses a boundary between segments (where positions
/// jump and a mask's interval test would have to say `some`). A segment's blocks are of equal size, a multiple of
/// `granule` (which must divide `largest`), but for its last one.
class token_blocks {
 public:
  constexpr token_blocks(const segments& pieces, std::int64_t largest, std::int64_t granule) noexcept
      : pieces_(pieces) {
    for (int i = 0; i < pieces_.size(); ++i) {
      const std::int64_t count = pieces_[i].count;
      const std::int64_t parts = (count + largest - 1) / largest;
      size_[i] = ((count + parts - 1) / parts + granule - 1) / granule * granule;
      blocks_[i] = (count + size_[i] - 1) / size_[i];
    }
  }

  [[nodiscard]] constexpr std::int64_t count() const noexcept { return blocks_[0] + blocks_[1]; }

  [[nodiscard]] constexpr token_block operator[](std::int64_t block) const noexcept {
    const int piece = block < blocks_[0] ? 0 : 1;
    const std::int64_t offset = (block - (piece == 0 ? 0 : blocks_[0])) * size_[piece];
    const std::int64_t left = pieces_[piece].count - offset;
    return {pieces_[piece], offset, offset + (piece == 0 ? 0 : pieces_[0].count),
            left < size_[piece] ? left : size_[piece]};
  }

 private:
  segments pieces_;
  std::int64_t size_[2] = {0, 0};
  std::int64_t blocks_[2] = {0, 0};
};

}  // namespace orrery::detail
