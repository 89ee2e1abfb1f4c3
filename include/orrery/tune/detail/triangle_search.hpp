// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <initializer_list>

#include "orrery/schedule/block.hpp"  // IWYU pragma: keep: names of the schedule in detail
#include "orrery/schedule/list.hpp"

namespace orrery::detail {

/// Which rank computes which pair of shards, of all pairs below the diagonal: at [query * (query + 1) / 2 + key].
struct triangle {
  int world = 0;
  list<int> rank_of;

  [[nodiscard]] static constexpr int at(int query, int key) noexcept { return query * (query + 1) / 2 + key; }

  /// For a world of m² / 2 ranks, m even: the sequence is cut into m pieces of m / 2 shards. The pairs of two pieces,
  /// a square, are a rank's; those within a piece, a triangle, are half as many, and two of them a rank's.
  [[nodiscard]] static constexpr triangle of_squares(int m) {
    const int side = m / 2;
    triangle made{m * side, {}};
    made.rank_of = list<int>(made.world * (made.world + 1) / 2);
    // Each square goes to a rank that owns one of its shards, as long as there is one, and each pair of triangles, too.
    list<int> taken(made.world);
    const auto owner = [&](int first, int second) {
      for (const int piece : {first, second}) {
        for (int rank = piece * side; rank < (piece + 1) * side; ++rank) {
          if (taken[rank] == 0) return taken[rank] = 1, rank;
        }
      }
      int rank = 0;
      while (taken[rank] != 0) ++rank;
      return taken[rank] = 1, rank;
    };
    const auto give = [&](int queries, int keys, int rank) {
      for (int q = queries * side; q < (queries + 1) * side; ++q) {
        for (int k = keys * side; k < (keys + 1) * side && k <= q; ++k) made.rank_of[at(q, k)] = rank;
      }
    };
    for (int piece = 0; piece < m; piece += 2) {
      const int rank = owner(piece, piece + 1);
      give(piece, piece, rank);
      give(piece + 1, piece + 1, rank);
    }
    // The squares next to the diagonal first, by which they lie in rings around it: each piece has as many near as far.
    for (int distance = 1; distance < m; ++distance) {
      for (int keys = 0; keys + distance < m; ++keys) give(keys + distance, keys, owner(keys + distance, keys));
    }
    return made;
  }
};

/// Looks for a distribution of the pairs below the diagonal in which ranks need few blocks of others: simulated
/// annealing from several random beginnings, in integers and from a fixed seed, so that every rank and every machine
/// finds the same. Ranks compute the same up to half a pair of shards; a pair on the diagonal counts half.
///
/// Costs some 20,000 moves for each pair of shards: 0.3 s for 16 ranks.
class triangle_search {
 public:
  constexpr explicit triangle_search(int world)
      : world_{world}, pairs_{world * (world + 1) / 2}, query_of_(pairs_), key_of_(pairs_) {
    while (most_ * most_ * 2 < world * 3) ++most_;
    for (int q = 0; q < world; ++q) {
      for (int k = 0; k <= q; ++k) {
        query_of_[triangle::at(q, k)] = q;
        key_of_[triangle::at(q, k)] = k;
        (q == k ? diagonal_ : rest_).push_back(triangle::at(q, k));
      }
    }
  }

  [[nodiscard]] constexpr triangle run() {
    triangle best{world_, {}};
    int least = 0;
    for (int beginning = 0; beginning < beginnings; ++beginning) {
      begin();
      anneal();
      const int found = total();
      if (!best.rank_of.empty() && found >= least) continue;
      best.rank_of = rank_of_;
      least = found;
    }
    return best;
  }

 private:
  static constexpr int beginnings = 4;
  static constexpr int moves_per_pair = 4000;
  static constexpr int block_weight = 8;  // of a block in energies
  static constexpr int hottest = 24;      // eighths of energy

  /// A move: these pairs go to these ranks, which are `a` and `b`.
  struct move {
    int count;
    int pair[3];
    int to[3];
    int a;
    int b;
  };

  constexpr std::uint32_t random() {
    random_ ^= random_ << 13U;
    random_ ^= random_ >> 7U;
    random_ ^= random_ << 17U;
    return static_cast<std::uint32_t>(random_ >> 32U);
  }
  constexpr int below(int n) {
    return static_cast<int>((std::uint64_t{random()} * static_cast<std::uint64_t>(n)) >> 32U);
  }
  constexpr int any_of(const list<int>& some) { return some.items[below(some.count)]; }

  /// In half pairs.
  [[nodiscard]] constexpr int work_of(int pair) const { return query_of_.items[pair] == key_of_.items[pair] ? 1 : 2; }
  [[nodiscard]] constexpr std::int64_t energy(int rank) const {
    const std::int64_t needs = needs_.items[rank];
    return needs * block_weight + (needs > most_ ? (needs - most_) * (needs - most_) * block_weight : 0);
  }
  [[nodiscard]] constexpr int total() const {
    int most = 0;
    int sum = 0;
    for (const int needs : needs_) {
      sum += needs;
      most = needs > most ? needs : most;
    }
    return sum + (most > most_ ? world_ * most : 0);
  }

  constexpr void put(int pair, int rank, int times) {
    const int q = query_of_.items[pair];
    const int k = key_of_.items[pair];
    int& queries = uses_.items[(2 * rank) * world_ + q];
    int& keys = uses_.items[(2 * rank + 1) * world_ + k];
    needs_.items[rank] -= (queries > 0 && q != rank ? 1 : 0) + (keys > 0 && k != rank ? 1 : 0);
    queries += times;
    keys += times;
    needs_.items[rank] += (queries > 0 && q != rank ? 1 : 0) + (keys > 0 && k != rank ? 1 : 0);
    work_.items[rank] += times * work_of(pair);
  }

  /// Pairs of whole shards at random, as many to each rank; pairs on the diagonal to their ranks, or, in even worlds,
  /// two of them to every other one, so that all have as much to do.
  constexpr void begin() {
    rank_of_ = list<int>(pairs_);
    uses_ = list<int>(2 * world_ * world_);
    needs_ = list<int>(world_);
    work_ = list<int>(world_);
    list<int> places;
    for (int rank = 0; rank < world_; ++rank) {
      const int pairs = world_ % 2 == 1 ? (world_ - 1) / 2 : rank % 2 == 1 ? world_ / 2 : world_ / 2 - 1;
      for (int i = 0; i < pairs; ++i) places.push_back(rank);
      rank_of_[diagonal_[rank]] = world_ % 2 == 1 ? rank : rank / 2 * 2;
    }
    for (int i = places.count - 1; i > 0; --i) {
      const int other = below(i + 1);
      const int kept = places[i];
      places[i] = places[other];
      places[other] = kept;
    }
    for (int i = 0; i < rest_.count; ++i) rank_of_[rest_[i]] = places[i];
    for (int pair = 0; pair < pairs_; ++pair) put(pair, rank_of_[pair], 1);
  }

  /// Two pairs change places; or two on the diagonal and one that is not; or one on the diagonal goes; or it changes
  /// places with one that is not. No pairs: a move that would be none.
  constexpr move propose() {
    const int kind = below(10);
    move one{0, {0, 0, 0}, {0, 0, 0}, 0, 0};
    const int x = kind > 4 ? any_of(rest_) : any_of(diagonal_);
    const int y = kind == 0 || kind == 1 || kind == 2 ? any_of(diagonal_) : any_of(rest_);
    const int z = kind == 1 || kind == 2 ? any_of(rest_) : y;
    one.a = rank_of_.items[x];
    one.b = kind == 3 ? below(world_) : rank_of_.items[z];
    if (one.a == one.b) return one;
    const auto add = [&](int pair, int to) {
      one.pair[one.count] = pair;
      one.to[one.count++] = to;
    };
    add(x, one.b);
    if (kind == 3) return one;
    if (z != y) {
      if (x == y || rank_of_.items[y] != one.a) return one.count = 0, one;
      add(y, one.b);
    }
    add(z, one.a);
    return one;
  }

  constexpr void apply(const move& one) {
    for (int i = 0; i < one.count; ++i) {
      put(one.pair[i], one.to[i] == one.a ? one.b : one.a, -1);
      put(one.pair[i], one.to[i], 1);
    }
  }

  constexpr void anneal() {
    const std::int64_t moves = rest_.empty() ? 0 : std::int64_t{moves_per_pair} * pairs_;
    for (std::int64_t i = 0; i < moves; ++i) {
      move one = propose();
      if (one.count == 0) continue;
      const std::int64_t before = energy(one.a) + energy(one.b);
      apply(one);
      // Accepts what is worse by d with a probability that halves with every so much of d: zeros at the end of a random
      // number are as rare.
      const std::int64_t heat = hottest * (moves - i) / moves;
      std::uint32_t bits = random() | 0x80000000U;
      std::int64_t zeros = 0;
      for (; (bits & 1U) == 0; bits >>= 1U) ++zeros;
      const bool even = is_even(one.a) && is_even(one.b);
      if (even && (energy(one.a) + energy(one.b) - before) * 8 <= heat * zeros) {
        for (int p = 0; p < one.count; ++p) rank_of_.items[one.pair[p]] = one.to[p];
        continue;
      }
      for (int p = 0; p < one.count; ++p) one.to[p] = one.to[p] == one.a ? one.b : one.a;
      apply(one);
    }
  }
  [[nodiscard]] constexpr bool is_even(int rank) const {
    return work_.items[rank] >= world_ - 1 && work_.items[rank] <= world_ + 1;
  }

  int world_;
  int pairs_;
  int most_ = 1;  // blocks of others that a rank should need at most, about the square root of 3/2 world
  list<int> query_of_;
  list<int> key_of_;
  list<int> diagonal_;
  list<int> rest_;
  list<int> rank_of_;
  list<int> uses_;   // of each rank, how many of its pairs have a query; then a key
  list<int> needs_;  // of each rank, blocks that are not its own
  list<int> work_;   // of each rank, in half pairs
  std::uint64_t random_ = 88172645463325252U;
};

}  // namespace orrery::detail
