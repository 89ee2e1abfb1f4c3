// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/schedule/relation.hpp"
#include "orrery/verify/detail/proof_subject.hpp"
#include "orrery/verify/verdict.hpp"

namespace orrery::detail {

/// Proves all tiles of a world: each visible pair of chunks is computed exactly once in each slice. What is computed of
/// other pairs, and how often, does not matter: the interaction hides it. Rows are chunks of queries, columns chunks of
/// keys: chunk c of shard s is number s * chunks + c.
class pair_coverage {
 public:
  constexpr explicit pair_coverage(proof_subject& subject)
      : subject_{subject},
        programs_{subject.programs},
        world_{subject.world},
        period_{subject.period},
        chunks_{subject.programs.items[0].chunks},
        words_{(world_ * chunks_ + 63) / 64} {}

  /// `visible(query, key)`, with the numbers of two chunks, says which pairs must be computed; others may be. Of a
  /// world whose programs repeat, it must be `every_pair`.
  template <pair_relation Visible>
  constexpr bool prove(const Visible& visible) {
    return period_ == world_ ? cover_slice_by_slice(visible) : cover_first_rows(visible);
  }

 private:
  static constexpr int none = -1;

  using word = std::uint64_t;

  struct placed_tile {
    int rank;
    int step;
    int next;
  };

  /// The rows of the first `period` query shards, in all slices; each tile is moved to where its queries are among
  /// them.
  template <pair_relation Visible>
  constexpr bool cover_first_rows(const Visible& visible) {
    const int slices = programs_.items[0].slices;
    const int chunks = chunks_;
    const int rows = period_ * chunks;
    const int columns = world_ * chunks;
    const int words = words_;
    list<word> computed(slices * rows * words);
    for (int rank = 0; rank < period_; ++rank) {
      const program& p = programs_.items[rank];
      for (int i = 0; i < p.steps.count; ++i) {
        const tile& t = p.steps.items[i].tile;
        if (t.queries.count == 0 || t.keys.count == 0) continue;
        for (auto [held, end] = p.queries_of(t); held != end; ++held) {
          const block& query = held->block;
          const int row = query.shard % period_;
          const int back = query.shard - row;
          const int slice = ((query.slice - back) % slices + slices) % slices;
          word* const bits = computed.items + (slice * rows + row * chunks + query.chunk) * words;
          for (auto [met, last] = p.keys_of(t); met != last; ++met) {
            const block& key = met->block;
            const int moved = (key.shard - back) * chunks + key.chunk;
            const unsigned column = static_cast<unsigned>(moved < 0 ? moved + columns : moved);
            word& w = bits[column / 64];
            if ((w >> column % 64 & 1U) != 0 && visible(number_of(query), number_of(key)))
              return refuse_pair(fault::pair_computed_twice, rank, i, query, number_of(key));
            w |= word{1} << column % 64;
          }
        }
      }
    }
    for (int slice = 0; slice < slices; ++slice) {
      if (!all_visible(computed.items + slice * rows * words, slice, visible)) return false;
    }
    return true;
  }

  [[nodiscard]] constexpr int number_of(const block& b) const { return b.shard * chunks_ + b.chunk; }

  /// Refuses the pair of a query block and the key chunk of this number.
  constexpr bool refuse_pair(fault f, int rank, int step, const block& query, int key) {
    subject_.refuse(f, rank, step, query, key / chunks_);
    subject_.found.peer_chunk = key % chunks_;
    return false;
  }

  /// True if all visible pairs of the first `period` query shards are computed in this slice.
  template <pair_relation Visible>
  constexpr bool all_visible(const word* computed, int slice, const Visible& visible) {
    const int words = words_;
    const int columns = world_ * chunks_;
    for (int q = 0; q < period_ * chunks_; ++q) {
      for (int w = 0; w < words; ++w) {
        const int keys = columns - 64 * w < 64 ? columns - 64 * w : 64;
        const word all = keys == 64 ? ~word{0} : (word{1} << static_cast<unsigned>(keys)) - 1;
        const word missing = visible_bits(visible, q, w, all & ~computed[q * words + w]);
        if (missing != 0) {
          const int shard = q / chunks_;
          return refuse_pair(fault::pair_missing, shard, 0,
                             {side::query, static_cast<std::uint16_t>(q % chunks_), shard, slice},
                             first_key(w, missing));
        }
      }
    }
    return true;
  }

  template <pair_relation Visible>
  constexpr bool cover_slice_by_slice(const Visible& visible) {
    const int world = programs_.count;
    const int slices = programs_.items[0].slices;
    const int words = words_;
    list<int> first_tile(slices, none);
    list<placed_tile> tiles;
    for (int rank = world - 1; rank >= 0; --rank) {
      const program& p = programs_.items[rank];
      for (int i = p.steps.count - 1; i >= 0; --i) {
        const tile& t = p.steps.items[i].tile;
        if (t.queries.count == 0 || t.keys.count == 0) continue;
        int& first = first_tile.items[p.queries_of(t)[0].block.slice];
        *tiles.extend(1) = {rank, i, first};
        first = tiles.count - 1;
      }
    }
    list<word> computed(world * chunks_ * words);
    list<word> tile_keys(words);
    for (int slice = 0; slice < slices; ++slice) {
      if (slice > 0) {
        for (word& w : computed) w = 0;
      }
      for (int t = first_tile[slice]; t != none; t = tiles.items[t].next) {
        if (!mark(tiles.items[t].rank, tiles.items[t].step, computed, tile_keys, visible)) return false;
      }
      if (!all_visible(computed.items, slice, visible)) return false;
    }
    return true;
  }

  /// The key of the lowest bit of word w of a row.
  [[nodiscard]] static constexpr int first_key(int w, word bits) {
    int key = 64 * w;
    while ((bits >> static_cast<unsigned>(key % 64) & 1U) == 0) ++key;
    return key;
  }

  template <pair_relation Visible>
  constexpr bool mark(int rank, int step, list<word>& computed, list<word>& tile_keys, const Visible& visible) {
    const program& p = programs_.items[rank];
    const int words = tile_keys.count;
    const int chunks = chunks_;  // numbers without a call, of which compilers count the steps
    const tile& t = p.steps.items[step].tile;
    // Pair by pair, where collecting the keys in words first is no less work.
    if (t.queries.count * t.keys.count <= t.keys.count + (t.queries.count + 1) * words) {
      for (auto [query, end] = p.queries_of(t); query != end; ++query) {
        const int of_query = query->block.shard * chunks + query->block.chunk;
        word* const row = computed.items + of_query * words;
        for (auto [key, last] = p.keys_of(t); key != last; ++key) {
          const auto column = static_cast<unsigned>(key->block.shard * chunks + key->block.chunk);
          if ((row[column / 64] >> column % 64 & 1U) != 0 && visible(of_query, number_of(key->block)))
            return refuse_pair(fault::pair_computed_twice, rank, step, query->block, number_of(key->block));
          row[column / 64] |= word{1} << column % 64;
        }
      }
      return true;
    }
    for (int w = 0; w < words; ++w) tile_keys.items[w] = 0;
    for (auto [key, end] = p.keys_of(t); key != end; ++key) {
      const int column = key->block.shard * chunks + key->block.chunk;
      const word bit = word{1} << static_cast<unsigned>(column % 64);
      word& w = tile_keys.items[column / 64];
      if ((w & bit) != 0 && is_seen(p.queries_of(t), column, visible)) {
        return refuse_pair(fault::pair_computed_twice, rank, step, p.queries_of(t)[0].block, column);
      }
      w |= bit;
    }
    for (auto [query, end] = p.queries_of(t); query != end; ++query) {
      const int of_query = query->block.shard * chunks + query->block.chunk;
      word* const row = computed.items + of_query * words;
      for (int w = 0; w < words; ++w) {
        const word twice = visible_bits(visible, of_query, w, row[w] & tile_keys.items[w]);
        if (twice != 0) return refuse_pair(fault::pair_computed_twice, rank, step, query->block, first_key(w, twice));
        row[w] |= tile_keys.items[w];
      }
    }
    return true;
  }

  /// True if any of these queries sees the key.
  template <pair_relation Visible>
  [[nodiscard]] constexpr bool is_seen(entries<const held_block> queries, int key, const Visible& visible) const {
    for (auto [query, end] = queries; query != end; ++query)
      if (visible(number_of(query->block), key)) return true;
    return false;
  }

  proof_subject& subject_;
  const list<program>& programs_;
  int world_;
  int period_;
  int chunks_;
  int words_;  ///< of a row
};

}  // namespace orrery::detail
