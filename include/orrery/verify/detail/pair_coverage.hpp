// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>

#include "orrery/schedule/program.hpp"
#include "orrery/schedule/relation.hpp"
#include "orrery/verify/detail/proof_subject.hpp"

namespace orrery::detail {

/// Proves all tiles of a world: each visible pair of shards is computed exactly once in each slice. What is computed of
/// other pairs, and how often, does not matter: the interaction hides it.
class pair_coverage {
 public:
  constexpr explicit pair_coverage(proof_subject& subject)
      : subject_{subject}, programs_{subject.programs}, world_{subject.world}, period_{subject.period} {}

  /// `visible(query shard, key shard)` says which pairs must be computed; others may be. Of a world whose programs
  /// repeat, it must be `every_pair`.
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
    const int words = (world_ + 63) / 64;
    list<word> computed(slices * period_ * words);
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
          word* const bits = computed.items + (slice * period_ + row) * words;
          for (auto [met, last] = p.keys_of(t); met != last; ++met) {
            const int key = met->block.shard - back;
            const unsigned shard = static_cast<unsigned>(key < 0 ? key + world_ : key);
            word& w = bits[shard / 64];
            if ((w >> shard % 64 & 1U) != 0 && visible(query.shard, met->block.shard))
              return subject_.refuse(fault::pair_computed_twice, rank, i, query, met->block.shard);
            w |= word{1} << shard % 64;
          }
        }
      }
    }
    for (int slice = 0; slice < slices; ++slice) {
      if (!all_visible(computed.items + slice * period_ * words, slice, visible)) return false;
    }
    return true;
  }

  /// Are all visible pairs of the first `period` query shards computed in this slice?
  template <pair_relation Visible>
  constexpr bool all_visible(const word* computed, int slice, const Visible& visible) {
    const int words = (world_ + 63) / 64;
    for (int q = 0; q < period_; ++q) {
      for (int w = 0; w < words; ++w) {
        const int keys = world_ - 64 * w < 64 ? world_ - 64 * w : 64;
        const word all = keys == 64 ? ~word{0} : (word{1} << static_cast<unsigned>(keys)) - 1;
        const word missing = visible_bits(visible, q, w, all & ~computed[q * words + w]);
        if (missing != 0)
          return subject_.refuse(fault::pair_missing, q, 0, {side::query, q, slice}, first_key(w, missing));
      }
    }
    return true;
  }

  template <pair_relation Visible>
  constexpr bool cover_slice_by_slice(const Visible& visible) {
    const int world = programs_.count;
    const int slices = programs_.items[0].slices;
    const int words = (world + 63) / 64;
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
    list<word> computed(world * words);
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
    const tile& t = p.steps.items[step].tile;
    // Pair by pair, where collecting the keys in words first is no less work.
    if (t.queries.count * t.keys.count <= t.keys.count + (t.queries.count + 1) * words) {
      for (auto [query, end] = p.queries_of(t); query != end; ++query) {
        word* const row = computed.items + query->block.shard * words;
        for (auto [key, last] = p.keys_of(t); key != last; ++key) {
          const auto shard = static_cast<unsigned>(key->block.shard);
          if ((row[shard / 64] >> shard % 64 & 1U) != 0 && visible(query->block.shard, key->block.shard))
            return subject_.refuse(fault::pair_computed_twice, rank, step, query->block, key->block.shard);
          row[shard / 64] |= word{1} << shard % 64;
        }
      }
      return true;
    }
    for (word& w : tile_keys) w = 0;
    for (auto [key, end] = p.keys_of(t); key != end; ++key) {
      const int shard = key->block.shard;
      const word bit = word{1} << static_cast<unsigned>(shard % 64);
      word& w = tile_keys.items[shard / 64];
      if ((w & bit) != 0 && is_seen(p.queries_of(t), shard, visible)) {
        return subject_.refuse(fault::pair_computed_twice, rank, step, p.queries_of(t)[0].block, shard);
      }
      w |= bit;
    }
    for (auto [query, end] = p.queries_of(t); query != end; ++query) {
      word* const row = computed.items + query->block.shard * words;
      for (int w = 0; w < words; ++w) {
        const word twice = visible_bits(visible, query->block.shard, w, row[w] & tile_keys.items[w]);
        if (twice != 0)
          return subject_.refuse(fault::pair_computed_twice, rank, step, query->block, first_key(w, twice));
        row[w] |= tile_keys.items[w];
      }
    }
    return true;
  }

  /// Do any of these queries see the key?
  template <pair_relation Visible>
  [[nodiscard]] static constexpr bool is_seen(entries<const held_block> queries, int key, const Visible& visible) {
    for (auto [query, end] = queries; query != end; ++query)
      if (visible(query->block.shard, key)) return true;
    return false;
  }

  proof_subject& subject_;
  const list<program>& programs_;
  int world_;
  int period_;
};

}  // namespace orrery::detail
