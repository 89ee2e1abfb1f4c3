// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>

#include "orrery/schedule/list.hpp"

namespace orrery::schedule {

/// Says which pairs of a query block and a key block must be computed: `visible(query, key)`, a function of the numbers
/// of two shards. Where shards are cut into chunks, the number of a chunk is shard * chunks + chunk.
template <class Visible>
concept pair_relation = requires(const Visible& visible, int number) {
  { visible(number, number) } -> std::convertible_to<bool>;
};

/// All pairs: what a mask that is not known at plan time asks for.
struct every_pair {
  [[nodiscard]] constexpr bool operator()(int, int) const noexcept { return true; }
};

/// Pairs whose key shard is not after the query shard: what a causal mask asks for under the layout `contiguous`.
///
///     static_assert(orrery::verify(orrery::half_ring{}, 16, orrery::pass::forward, orrery::below_diagonal{}));
struct below_diagonal {
  [[nodiscard]] constexpr bool operator()(int query, int key) const noexcept { return key <= query; }
};

/// A pair relation as bits: a row for each query block, a bit in it for each key block. What a mask and a layout ask of
/// a schedule. Costs (world * chunks)^2 bits.
class relation {
 public:
  using word = std::uint64_t;

  constexpr relation() = default;
  /// Of no pair. Shards are cut into `chunks` chunks each; 1: not at all.
  constexpr explicit relation(int world, int chunks = 1)
      : world_{world}, chunks_{chunks}, words_{(world * chunks + 63) / 64}, bits_(world * chunks * words_) {}
  /// Of the pairs that another relation asks for. Asks it about every pair.
  template <pair_relation Visible>
  [[nodiscard]] static constexpr relation of(const Visible& visible, int world, int chunks = 1) {
    relation all{world, chunks};
    for (int query = 0; query < all.blocks(); ++query) {
      for (int key = 0; key < all.blocks(); ++key) {
        if (visible(query, key)) all.set(query, key);
      }
    }
    return all;
  }

  [[nodiscard]] constexpr int world() const noexcept { return world_; }
  [[nodiscard]] constexpr int chunks() const noexcept { return chunks_; }
  /// The number of query blocks, and of key blocks, of one slice.
  [[nodiscard]] constexpr int blocks() const noexcept { return world_ * chunks_; }
  /// The number of words of a row.
  [[nodiscard]] constexpr int words() const noexcept { return words_; }

  /// Adds a pair, 0 <= query, key < blocks().
  constexpr void set(int query, int key) noexcept {
    bits_.items[query * words_ + key / 64] |= word{1} << static_cast<unsigned>(key % 64);
  }
  /// Adds the pairs of a query and the keys first, ..., last; none if last < first. For masks that answer in intervals.
  constexpr void set(int query, int first, int last) noexcept {
    for (int key = first; key <= last; ++key) {
      if (key % 64 == 0 && last - key >= 63) {
        bits_.items[query * words_ + key / 64] = ~word{0};
        key += 63;
      } else {
        set(query, key);
      }
    }
  }
  [[nodiscard]] constexpr bool operator()(int query, int key) const noexcept {
    return (row(query)[key / 64] >> static_cast<unsigned>(key % 64) & 1U) != 0;
  }
  /// The `words()` words of a query's row; bit key % 64 of word key / 64 is the pair with this key.
  [[nodiscard]] constexpr const word* row(int query) const noexcept { return bits_.items + query * words_; }

  /// True if every pair is in it. Then schedules need no pruning.
  [[nodiscard]] constexpr bool is_full() const noexcept {
    for (int query = 0; query < blocks(); ++query) {
      for (int w = 0; w < words_; ++w) {
        if (row(query)[w] != all_keys(w)) return false;
      }
    }
    return true;
  }

  /// The same of whole shards: two shards are a pair if any of their chunks are.
  [[nodiscard]] constexpr relation coarse() const {
    if (chunks_ == 1) return *this;
    relation whole{world_};
    for (int query = 0; query < blocks(); ++query) {
      for (int w = 0; w < words_; ++w) {
        if (row(query)[w] == 0) continue;
        for (int key = 64 * w; key < 64 * w + 64 && key < blocks(); ++key) {
          if ((*this)(query, key)) whole.set(query / chunks_, key / chunks_);
        }
      }
    }
    return whole;
  }

  /// A hash of 64 bits, for ranks to compare: equal relations have equal digests on every machine.
  [[nodiscard]] constexpr std::uint64_t digest() const noexcept {
    std::uint64_t state = std::uint64_t{static_cast<std::uint32_t>(world_)} << 32 | static_cast<std::uint32_t>(chunks_);
    for (const word& bits : bits_) {
      state = (state ^ (bits * 0x9e3779b97f4a7c15u)) * 0xff51afd7ed558ccdu;
      state ^= state >> 32;
    }
    return state;
  }

  constexpr bool operator==(const relation& other) const {
    return world_ == other.world_ && chunks_ == other.chunks_ && bits_ == other.bits_;
  }

 private:
  /// The bits of all keys of word w.
  [[nodiscard]] constexpr word all_keys(int w) const noexcept {
    const int keys = blocks() - 64 * w;
    return keys >= 64 ? ~word{0} : (word{1} << static_cast<unsigned>(keys)) - 1;
  }

  int world_ = 0;
  int chunks_ = 1;
  int words_ = 0;
  list<word> bits_;
};

}  // namespace orrery::schedule

namespace orrery {
using schedule::below_diagonal;
using schedule::every_pair;
using schedule::pair_relation;
}  // namespace orrery

namespace orrery::detail {

/// Those of `bits`, keys 64 * w and following, that are visible to this query.
template <pair_relation Visible>
[[nodiscard]] constexpr std::uint64_t visible_bits(const Visible& visible, int query, int w, std::uint64_t bits) {
  if constexpr (std::same_as<Visible, schedule::every_pair>) {
    return bits;
  } else if constexpr (std::same_as<Visible, schedule::relation>) {
    return bits & visible.row(query)[w];
  } else {
    std::uint64_t seen = 0;
    for (int key = 64 * w; bits >> static_cast<unsigned>(key % 64) != 0; ++key) {
      const std::uint64_t bit = std::uint64_t{1} << static_cast<unsigned>(key % 64);
      if ((bits & bit) != 0 && visible(query, key)) seen |= bit;
      if (key % 64 == 63) break;
    }
    return seen;
  }
}

}  // namespace orrery::detail
