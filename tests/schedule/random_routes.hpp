// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// Schedules that nobody would write: every pair of shards is computed on a random rank, operands get there over random
// trees of ranks, and partials come home along random chains. They are right, and as irregular as programs can be.

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace random_routes {

/// At most `most` - 1, at least 0.
inline int below(std::mt19937_64& random, int most) { return static_cast<int>(random() % static_cast<unsigned>(most)); }

/// A topology with one value for each seed.
class topology {
 public:
  explicit topology(std::uint64_t seed) : seed_{seed} {}

  [[nodiscard]] orrery::program program(int rank, int world, orrery::pass p) const { return programs(world, p)[rank]; }
  [[nodiscard]] orrery::schedule::list<orrery::program> programs(int world, orrery::pass p) const {
    return writer{seed_, world, p}.write();
  }
  bool operator==(const topology&) const = default;

 private:
  using side = orrery::schedule::side;
  using payload = orrery::schedule::payload;

  struct message {
    int step, complete, from, to, lane;
    orrery::schedule::payload payload;
    orrery::schedule::block block;
  };
  struct pair {
    int step, rank, query, key;
  };

  class writer {
   public:
    writer(std::uint64_t seed, int world, orrery::pass p)
        : random_{seed}, world_{world}, pass_{p}, usable_(index(world)), last_use_(index(world)) {}

    orrery::schedule::list<orrery::program> write() {
      choose_ranks();
      for (const side s : {side::query, side::key}) {
        for (int shard = 0; shard < world_; ++shard) route_operand(s, shard);
      }
      place_tiles();
      for (const side s : {side::query, side::key}) {
        if (!orrery::schedule::has_partials(pass_, s)) continue;
        for (int shard = 0; shard < world_; ++shard) route_partial(s, shard);
      }
      return written();
    }

   private:
    /// A table by side, shard and rank.
    [[nodiscard]] static std::size_t index(int world) { return static_cast<std::size_t>(2 * world * world); }
    [[nodiscard]] std::size_t at(side s, int shard, int rank) const {
      return static_cast<std::size_t>((static_cast<int>(s) * world_ + shard) * world_ + rank);
    }

    void choose_ranks() {
      for (int q = 0; q < world_; ++q) {
        for (int k = 0; k < world_; ++k) {
          const int where = below(random_, 4);
          pairs_.push_back({0, where == 0 ? below(random_, world_) : where == 1 ? k : q, q, k});
        }
      }
      std::shuffle(pairs_.begin(), pairs_.end(), random_);
    }

    void route_operand(side s, int shard) {
      std::vector<int> needing;
      for (int rank = 0; rank < world_; ++rank) {
        bool needs = below(random_, 8) == 0;  // or it only passes through
        for (const pair& one : pairs_)
          needs = needs || (one.rank == rank && (s == side::query ? one.query : one.key) == shard);
        if (needs && rank != shard) needing.push_back(rank);
      }
      std::shuffle(needing.begin(), needing.end(), random_);
      std::vector<int> having{shard};
      for (const int rank : needing) {
        const int from = having[static_cast<std::size_t>(below(random_, static_cast<int>(having.size())))];
        const int step = usable_[at(s, shard, from)] + below(random_, 3) / 2;
        const int complete = step + 1 + below(random_, 3) / 2;
        messages_.push_back({step, complete, from, rank, below(random_, 3), payload::operand, {s, 0, shard, 0}});
        usable_[at(s, shard, rank)] = complete;
        having.push_back(rank);
      }
    }

    void place_tiles() {
      std::vector<std::vector<char>> taken(static_cast<std::size_t>(world_));
      for (pair& one : pairs_) {
        auto& of_rank = taken[static_cast<std::size_t>(one.rank)];
        int step = (std::max)(usable_[at(side::query, one.query, one.rank)], usable_[at(side::key, one.key, one.rank)]);
        for (;; ++step) {
          if (static_cast<std::size_t>(step) >= of_rank.size()) of_rank.resize(static_cast<std::size_t>(step) + 1, 0);
          if (of_rank[static_cast<std::size_t>(step)] == 0) break;
        }
        of_rank[static_cast<std::size_t>(step)] = 1;
        one.step = step;
        last_use_[at(side::query, one.query, one.rank)] =
            (std::max)(last_use_[at(side::query, one.query, one.rank)], step + 1);
        last_use_[at(side::key, one.key, one.rank)] = (std::max)(last_use_[at(side::key, one.key, one.rank)], step + 1);
      }
    }

    /// What a rank has gathered goes to its owner, or to a rank that adds to it later, or to one that adds nothing.
    void route_partial(side s, int shard) {
      std::vector<std::pair<int, int>> held;  // from which step on, by whom
      for (int rank = 0; rank < world_; ++rank)
        if (rank != shard && last_use_[at(s, shard, rank)] > 0) held.emplace_back(last_use_[at(s, shard, rank)], rank);
      std::vector<char> relay(static_cast<std::size_t>(world_), 0);
      while (!held.empty()) {
        const auto first = std::min_element(held.begin(), held.end());
        const auto [step, rank] = *first;
        held.erase(first);
        const int complete = step + 1 + below(random_, 3) / 2;
        int to = shard;
        const int way = below(random_, 3);
        if (way == 0 && !held.empty()) {
          auto& next = held[static_cast<std::size_t>(below(random_, static_cast<int>(held.size())))];
          to = next.second;
          next.first = (std::max)(next.first, complete);
        } else if (way == 1) {
          const int other = below(random_, world_);
          const bool has_none = other != shard && other != rank && last_use_[at(s, shard, other)] == 0 &&
                                relay[static_cast<std::size_t>(other)] == 0;
          if (has_none) {
            to = other;
            relay[static_cast<std::size_t>(other)] = 1;
            held.emplace_back(complete, other);
          }
        }
        messages_.push_back({step, complete, rank, to, 3 + below(random_, 2), payload::partial, {s, 0, shard, 0}});
      }
    }

    [[nodiscard]] orrery::schedule::list<orrery::program> written() const {
      int steps = 0;
      for (const message& one : messages_) steps = (std::max)(steps, one.complete);
      for (const pair& one : pairs_) steps = (std::max)(steps, one.step + 1);
      orrery::schedule::list<orrery::program> all(world_);
      for (int rank = 0; rank < world_; ++rank) {
        orrery::builder schedule{rank, world_, pass_};
        for (int step = 0; step < steps; ++step) {
          for (const message& one : messages_) {
            if (one.step != step || (one.from != rank && one.to != rank)) continue;
            const bool sends = one.from == rank;
            schedule.begin_exchange(sends ? one.to : orrery::schedule::no_rank,
                                    sends ? orrery::schedule::no_rank : one.from, {one.lane, one.complete - step},
                                    one.payload);
            sends ? schedule.send(one.block) : schedule.receive(one.block);
          }
          for (const pair& one : pairs_)
            if (one.step == step && one.rank == rank) schedule.interact(orrery::query(one.query), orrery::key(one.key));
          schedule.next_step();
        }
        all[rank] = schedule;
      }
      return all;
    }

    std::mt19937_64 random_;
    int world_;
    orrery::pass pass_;
    std::vector<pair> pairs_;
    std::vector<message> messages_;
    std::vector<int> usable_;    // from which step on
    std::vector<int> last_use_;  // 1 + the step; 0: never
  };

  std::uint64_t seed_;
};

}  // namespace random_routes
