// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "orrery/kernel/tile.hpp"
#include "orrery/kernel/token_blocks.hpp"

namespace orrery {

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

/// The tensor whose tokens are a block's rows.
template <class Block>
[[nodiscard]] constexpr const auto& rows_of(const Block& block) noexcept {
  if constexpr (requires { block.q; }) {
    return block.q;
  } else {
    return block.k;
  }
}

/// What one block of threads works on: at most so many tokens of one head of one of a side's blocks, which cross no
/// boundary between segments. Items are counted with the tokens fastest, their last ones, which see most under a causal
/// mask, first; then the heads, then the batch.
struct device_item {
  int block = 0;
  std::int64_t batch = 0;
  std::int64_t head = 0;
  token_block tokens;

  /// How many items a side has if each has at most `most_tokens`, a multiple of 8.
  template <class Block>
  [[nodiscard]] static constexpr std::int64_t count(const device_blocks<Block>& side,
                                                    std::int64_t most_tokens) noexcept {
    std::int64_t items = 0;
    for (const Block& one : side) items += items_of(one, tiles_of(one, most_tokens));
    return items;
  }

  /// Item `index`, less than `count`.
  template <class Block>
  [[nodiscard]] static constexpr device_item of(const device_blocks<Block>& side, std::int64_t index,
                                                std::int64_t most_tokens) noexcept {
    int block = 0;
    for (;; ++block) {
      const std::int64_t items = items_of(side.of[block], tiles_of(side.of[block], most_tokens));
      if (index < items) break;
      index -= items;
    }
    const token_blocks tiles = tiles_of(side.of[block], most_tokens);
    const std::int64_t row = index / tiles.count();
    const std::int64_t heads = rows_of(side.of[block]).heads;
    return {block, row / heads, row % heads, tiles[tiles.count() - 1 - index % tiles.count()]};
  }

 private:
  template <class Block>
  static constexpr token_blocks tiles_of(const Block& block, std::int64_t most_tokens) noexcept {
    return {block.positions, most_tokens, 8};
  }
  template <class Block>
  static constexpr std::int64_t items_of(const Block& block, const token_blocks& tiles) noexcept {
    return rows_of(block).batch * rows_of(block).heads * tiles.count();
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

}  // namespace orrery
