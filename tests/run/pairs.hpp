// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/host/context.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/run/executor.hpp"
#include "orrery/topology/topology.hpp"

/// An interaction of a user's own, and the smallest one that shows a mistake in any schedule: every query token meets
/// every key token once in each slice, and the meeting leaves a number on both that no other meeting leaves. Integers,
/// so that sums are exact in every order.
namespace pairs {

/// What the meeting of two tokens adds to both (splitmix64's finaliser over the three numbers).
[[nodiscard]] constexpr std::uint64_t meeting(std::uint64_t query, std::uint64_t key, std::uint64_t slice) {
  std::uint64_t z = (query << 40) + (key << 16) + slice + 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

/// What a token knows of its meetings.
struct tally {
  std::uint64_t sum = 0;
  std::uint64_t count = 0;

  void operator+=(const tally& other) {
    sum += other.sum;
    count += other.count;
  }
  bool operator==(const tally&) const = default;
};

/// The tokens of one side: their names are their global positions, and shards are as long as `contiguous` makes them,
/// so that some may be empty.
struct tokens {
  std::int64_t length = 0;
  int world = 1;

  [[nodiscard]] orrery::segments shard(int of) const { return orrery::contiguous::shard(of, world, length); }
  [[nodiscard]] std::int64_t count(int of) const { return shard(of).tokens(); }
};

/// The interaction (see `orrery::interaction`). Operands: the tokens' names. Partials: their tallies, on the query side
/// and, in backward passes, on the key side.
class work {
 public:
  work(const tokens& queries, const tokens& keys, const orrery::program& p)
      : sides_{queries, keys}, pass_{p.pass}, rank_{p.rank} {
    for (const orrery::schedule::side s : {orrery::schedule::side::query, orrery::schedule::side::key}) {
      if (!orrery::schedule::has_partials(p.pass, s)) continue;
      auto& own = s == orrery::schedule::side::query ? query_tallies : key_tallies;
      const auto count = static_cast<std::size_t>(side_of(s).count(p.rank));
      // Nothing is read before it is written: these would spoil every sum.
      own.assign(static_cast<std::size_t>(p.slices), std::vector<tally>(count, tally{999, 999}));
    }
    own_.push_back(names(orrery::schedule::side::query, p.rank));
    own_.push_back(names(orrery::schedule::side::key, p.rank));
  }

  /// The results: of each slice, the tallies of this rank's own tokens.
  std::vector<std::vector<tally>> query_tallies, key_tallies;
  /// The blocks that were said to be complete.
  std::vector<orrery::schedule::block> finished;

  static constexpr std::array operands{orrery::schedule::side::query, orrery::schedule::side::key};

  [[nodiscard]] std::int64_t operand_bytes(int, const orrery::schedule::block& b) const {
    return side_of(b.side).count(b.shard) * static_cast<std::int64_t>(sizeof(std::uint64_t));
  }
  [[nodiscard]] std::int64_t partial_bytes(const orrery::schedule::block& b) const {
    return side_of(b.side).count(b.shard) * static_cast<std::int64_t>(sizeof(tally));
  }
  void prepare(const orrery::host_context&) { finished.clear(); }
  void pack(const orrery::host_context&, int, const orrery::schedule::block& b, std::byte* to) const {
    const auto& own = own_[static_cast<std::size_t>(b.side)];
    std::copy(own.begin(), own.end(), reinterpret_cast<std::uint64_t*>(to));
  }
  void interact(const orrery::host_context&, std::span<const orrery::detail::tile_block> queries,
                std::span<const orrery::detail::tile_block> keys) {
    for (const auto& all : {queries, keys}) {
      for (const orrery::detail::tile_block& one : all) {
        if (!one.fresh) continue;
        for (std::int64_t i = 0; i < tokens_of(one); ++i) tallies_of(one)[i] = {};
      }
    }
    for (const orrery::detail::tile_block& q : queries) {
      for (const orrery::detail::tile_block& k : keys) {
        if (q.block.slice != k.block.slice) throw std::logic_error{"a tile of two slices"};
        for (std::int64_t i = 0; i < tokens_of(q); ++i) {
          for (std::int64_t j = 0; j < tokens_of(k); ++j) {
            const tally met{meeting(names_of(q)[i], names_of(k)[j], static_cast<std::uint64_t>(q.block.slice)), 1};
            tallies_of(q)[i] += met;
            if (orrery::schedule::has_partials(pass_, orrery::schedule::side::key)) tallies_of(k)[j] += met;
          }
        }
      }
    }
  }
  void merge(const orrery::host_context&, const orrery::schedule::block& b, std::byte* into, const std::byte* from,
             bool fresh) {
    tally* const running = into == nullptr ? own_tallies(b) : reinterpret_cast<tally*>(into);
    const tally* const arrived = reinterpret_cast<const tally*>(from);
    for (std::int64_t i = 0; i < side_of(b.side).count(b.shard); ++i) {
      if (fresh) running[i] = {};
      running[i] += arrived[i];
    }
  }
  void finish(const orrery::host_context&, const orrery::schedule::block& own) {
    if (own.shard != rank_) throw std::logic_error{"a result of another rank"};
    finished.push_back(own);
  }

 private:
  [[nodiscard]] const tokens& side_of(orrery::schedule::side s) const { return sides_[static_cast<std::size_t>(s)]; }
  [[nodiscard]] std::vector<std::uint64_t> names(orrery::schedule::side s, int shard) const {
    std::vector<std::uint64_t> all;
    const orrery::segments positions = side_of(s).shard(shard);
    for (std::int64_t i = 0; i < positions.tokens(); ++i) {
      all.push_back(static_cast<std::uint64_t>(positions.position(i)));
    }
    return all;
  }
  [[nodiscard]] std::int64_t tokens_of(const orrery::detail::tile_block& b) const {
    return side_of(b.block.side).count(b.block.shard);
  }
  [[nodiscard]] const std::uint64_t* names_of(const orrery::detail::tile_block& b) const {
    if (b.operand == nullptr) return own_[static_cast<std::size_t>(b.block.side)].data();
    return reinterpret_cast<const std::uint64_t*>(b.operand);
  }
  [[nodiscard]] tally* own_tallies(const orrery::schedule::block& b) {
    auto& own = b.side == orrery::schedule::side::query ? query_tallies : key_tallies;
    return own[static_cast<std::size_t>(b.slice)].data();
  }
  [[nodiscard]] tally* tallies_of(const orrery::detail::tile_block& b) {
    return b.partial == nullptr ? own_tallies(b.block) : reinterpret_cast<tally*>(b.partial);
  }

  tokens sides_[2];
  orrery::pass pass_;
  int rank_;
  std::vector<std::vector<std::uint64_t>> own_;
};

/// Runs a topology's schedule twice and compares what all tokens know with what they should. Throws a message.
template <class Topology, class World>
void check_rank(World& world, orrery::pass p, std::int64_t queries, std::int64_t keys) {
  const Topology topology{};
  const orrery::program steps = orrery::program_of(topology, world.rank(), world.size(), p);
  const tokens query_side{queries, world.size()};
  const tokens key_side{keys, world.size()};
  work local{query_side, key_side, steps};
  orrery::executor run{world, steps, local};
  const auto check = [&](const char* side, const tokens& own, const tokens& others, bool own_is_query,
                         const auto& got) {
    for (int slice = 0; slice < steps.slices; ++slice) {
      for (std::int64_t i = 0; i < own.count(world.rank()); ++i) {
        const auto me = static_cast<std::uint64_t>(own.shard(world.rank()).position(i));
        tally expected;
        for (std::uint64_t other = 0; other < static_cast<std::uint64_t>(others.length); ++other) {
          const auto s = static_cast<std::uint64_t>(slice);
          expected += {own_is_query ? meeting(me, other, s) : meeting(other, me, s), 1};
        }
        const tally& found = got[static_cast<std::size_t>(slice)][static_cast<std::size_t>(i)];
        if (found == expected) continue;
        throw std::logic_error{std::string{side} + " token " + std::to_string(me) + " in slice " +
                               std::to_string(slice) + " has met " + std::to_string(found.count) + " of " +
                               std::to_string(expected.count) +
                               (found.count == expected.count ? ", the wrong ones" : "")};
      }
    }
  };
  for (int call = 0; call < 2; ++call) {
    run.run();
    const int sides = orrery::schedule::has_partials(p, orrery::schedule::side::key) ? 2 : 1;
    if (local.finished.size() != static_cast<std::size_t>(sides * steps.slices)) {
      throw std::logic_error{std::to_string(local.finished.size()) + " results are final"};
    }
    check("query", query_side, key_side, true, local.query_tallies);
    if (orrery::schedule::has_partials(p, orrery::schedule::side::key))
      check("key", key_side, query_side, false, local.key_tallies);
  }
}

}  // namespace pairs
