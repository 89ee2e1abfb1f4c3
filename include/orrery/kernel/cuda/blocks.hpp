// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "orrery/attention/tile.hpp"
#include "orrery/attention/token_blocks.hpp"
#include "orrery/mask/mask.hpp"

namespace orrery::detail {

/// The blocks of one side of a tile that one launch is about, by value, since a launch's arguments are copied. A tile
/// with more blocks is several launches, one after the other, whose running results meet in memory.
template <class Block>
struct device_blocks {
  static constexpr int most = 4;

  Block of[most];
  int count = 0;

  [[nodiscard]] constexpr const Block* begin() const noexcept { return of; }
  [[nodiscard]] constexpr const Block* end() const noexcept { return of + count; }
};

/// Calls launch(queries, keys) for all pairs of blocks, in the order of the keys, and at least once where there is no
/// block on a side, since results that are fresh must be written whatever they depend on. Results are fresh in the
/// first launch only.
template <class Query, class Key, class Launch>
void for_device_blocks(std::span<const Query> queries, std::span<const Key> keys, const Launch& launch) {
  constexpr std::size_t most = device_blocks<Query>::most;
  const auto cut = [](const auto& all, std::size_t first, auto& part) {
    const std::size_t left = all.size() - first;
    part.count = static_cast<int>(left < most ? left : most);
    std::copy_n(all.begin() + static_cast<std::ptrdiff_t>(first), part.count, part.of);
  };
  for (std::size_t key = 0; key == 0 || key < keys.size(); key += most) {
    for (std::size_t query = 0; query == 0 || query < queries.size(); query += most) {
      device_blocks<Query> some_queries;
      device_blocks<Key> some_keys;
      cut(queries, query, some_queries);
      cut(keys, key, some_keys);
      if (key > 0) {
        for (Query& one : some_queries.of) one.fresh = false;
      }
      if constexpr (requires { some_keys.of[0].fresh; }) {
        if (query > 0) {
          for (Key& one : some_keys.of) one.fresh = false;
        }
      }
      launch(some_queries, some_keys);
    }
  }
}

/// A tensor whose tokens are a block's rows.
template <class Block>
[[nodiscard]] constexpr const auto& rows_of(const Block& block) noexcept {
  if constexpr (requires { block.q; }) {
    return block.q;
  } else if constexpr (requires { block.k; }) {
    return block.k;
  } else {
    return block.grad;
  }
}

/// A shard's tokens in tiles of at most `most` tokens, none of which crosses a boundary between segments.
[[nodiscard]] constexpr std::int64_t device_tiles(const segments& positions, std::int64_t most) noexcept {
  std::int64_t tiles = 0;
  for (const segment& piece : positions) tiles += (piece.count + most - 1) / most;
  return tiles;
}

/// The tile that begins at token `offset` of segment `piece`, which begins at token `first` of the shard.
[[nodiscard]] constexpr token_block device_tile(const segment& piece, std::int64_t first, std::int64_t offset,
                                                std::int64_t most) noexcept {
  const std::int64_t left = piece.count - offset;
  return {piece, offset, first + offset, left < most ? left : most};
}

/// What one block of threads works on: a tile of one head of one of a side's blocks. Items are counted with the tiles
/// fastest, their last ones, which see most under a causal mask, first; then the heads, then the batch.
struct device_item {
  int block = 0;
  std::int64_t batch = 0;
  std::int64_t head = 0;
  token_block tokens;

  /// The number of items of a side, if each has at most `most` tokens.
  template <class Block>
  [[nodiscard]] static constexpr std::int64_t count(const device_blocks<Block>& side, std::int64_t most) noexcept {
    std::int64_t items = 0;
    for (const Block& one : side) items += items_of(one, most);
    return items;
  }

  /// Item `index`, less than `count`.
  template <class Block>
  [[nodiscard]] static constexpr device_item of(const device_blocks<Block>& side, std::int64_t index,
                                                std::int64_t most) noexcept {
    int block = 0;
    for (; index >= items_of(side.of[block], most); ++block) index -= items_of(side.of[block], most);
    const segments& positions = side.of[block].positions;
    const std::int64_t heads = rows_of(side.of[block]).heads;
    const std::int64_t tiles = device_tiles(positions, most);
    const std::int64_t row = index / tiles;
    const std::int64_t tile = tiles - 1 - index % tiles;
    const std::int64_t of_first = (positions[0].count + most - 1) / most;
    const bool in_first = tile < of_first;
    return {block, row / heads, row % heads,
            device_tile(positions[in_first ? 0 : 1], in_first ? 0 : positions[0].count,
                        (in_first ? tile : tile - of_first) * most, most)};
  }

 private:
  template <class Block>
  static constexpr std::int64_t items_of(const Block& block, std::int64_t most) noexcept {
    return rows_of(block).batch * rows_of(block).heads * device_tiles(block.positions, most);
  }
};

/// The query heads, of `count` in a view, that read one key head: [first, end).
struct head_group {
  std::int64_t first = 0;
  std::int64_t end = 0;

  [[nodiscard]] static constexpr head_group of(const head_map& heads, std::int64_t key_head,
                                               std::int64_t count) noexcept {
    const std::int64_t first = (heads.first_key_head + key_head) * heads.queries_per_key_head - heads.first_query_head;
    const std::int64_t end = first + heads.queries_per_key_head;
    return {first < 0 ? 0 : first, end < count ? end : count};
  }
};

/// Goes through the tiles, of at most `most` tokens, of one side that a block of threads meets: block by block, head by
/// head of a range, tile by tile, without those of which a mask's interval test says that nothing is visible. Of a tile
/// it remembers where it is, and computes the rest where it is asked for: in a kernel's loop registers are few. Shards
/// have fewer than 2^31 - 256 tokens, so that an int counts them, and a tile more.
template <class Block, int most>
class device_cursor {
 public:
  constexpr device_cursor(const device_blocks<Block>& side, const head_group& heads) noexcept
      : side_{&side},
        first_head_{static_cast<int>(heads.first)},
        end_of_heads_{static_cast<int>(heads.end)},
        head_{first_head_} {}

  /// Goes on to the next tile, the first if there was none before; false if there is none left.
  /// classify(first, last) says what is visible of the tile between these positions.
  template <class Classify>
  constexpr bool next(const Classify& classify) noexcept {
    offset_ += most;
    for (; block_ < side_->count; ++block_, head_ = first_head_) {
      for (; head_ < end_of_heads_; ++head_, piece_ = 0) {
        for (; piece_ < block().positions.size(); ++piece_, offset_ = 0) {
          for (; offset_ < block().positions[piece_].count; offset_ += most) {
            const token_block all = tokens();
            seen_ = classify(all.position(0), all.position(all.count - 1));
            if (seen_ != visibility::none) return true;
          }
        }
      }
    }
    return false;
  }

  [[nodiscard]] constexpr token_block tokens() const noexcept {
    const segments& positions = block().positions;
    return device_tile(positions[piece_], piece_ == 0 ? 0 : positions[0].count, offset_, most);
  }
  [[nodiscard]] constexpr const Block& block() const noexcept { return side_->of[block_]; }
  [[nodiscard]] constexpr int block_index() const noexcept { return block_; }
  [[nodiscard]] constexpr int head() const noexcept { return head_; }
  [[nodiscard]] constexpr visibility seen() const noexcept { return seen_; }

 private:
  const device_blocks<Block>* side_;
  int first_head_;
  int end_of_heads_;
  int block_ = 0;
  int head_;
  int piece_ = 0;
  int offset_ = -most;  // in the piece
  visibility seen_ = visibility::none;
};

}  // namespace orrery::detail
