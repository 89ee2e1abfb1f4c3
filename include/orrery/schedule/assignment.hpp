// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/detail/slot_allocation.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery {

/// Who computes what, as data: the tiles of each rank, in the order in which it computes them. Blocks stay with the
/// ranks that own them; what a tile needs of other ranks follows, and `programs_of` writes it.
///
///     orrery::assignment work{.world = 2, .of_rank = {{{{query(0)}, {key(0)}}}, {{{query(1)}, {key(0), key(1)}}}}};
///     auto programs = orrery::programs_of(work);
///
/// A planner makes one from what it knows of a batch (see `pack`).
struct assignment {
  /// The full product of some query blocks and some key blocks.
  struct product {
    std::vector<schedule::block> queries;
    std::vector<schedule::block> keys;

    bool operator==(const product&) const = default;
  };

  int world = 1;
  int chunks = 1;  ///< of each shard
  std::vector<std::vector<product>> of_rank;

  bool operator==(const assignment&) const = default;
};

}  // namespace orrery

namespace orrery::detail {

/// Blocks that one rank sends to another one in one step.
struct direct_message {
  int step;
  schedule::payload payload;
  int from;
  int to;
  schedule::block block;

  [[nodiscard]] auto of_exchange() const noexcept { return std::tuple{step, payload, from, to}; }
};

/// Throws `std::invalid_argument` if a tile of the assignment is no tile.
inline void check_assignment(const assignment& work) {
  const auto refuse = [](const std::string& why) { throw std::invalid_argument{"orrery: assignment: " + why}; };
  if (work.world < 1) refuse("world is " + std::to_string(work.world) + ", expected at least 1");
  if (work.chunks < 1 || work.chunks > schedule::most_chunks) {
    refuse("chunks is " + std::to_string(work.chunks) + ", expected 1 to " + std::to_string(schedule::most_chunks));
  }
  if (work.of_rank.size() != static_cast<std::size_t>(work.world)) {
    refuse("of_rank has the tiles of " + std::to_string(work.of_rank.size()) + " ranks, expected those of " +
           std::to_string(work.world));
  }
  for (std::size_t rank = 0; rank < work.of_rank.size(); ++rank) {
    for (std::size_t i = 0; i < work.of_rank[rank].size(); ++i) {
      const assignment::product& tile = work.of_rank[rank][i];
      const auto refuse_tile = [&](const std::string& why) {
        refuse("tile " + std::to_string(i) + " of rank " + std::to_string(rank) + " " + why);
      };
      if (tile.queries.empty() || tile.keys.empty()) refuse_tile("is empty, expected queries and keys");
      for (const schedule::side side : {schedule::side::query, schedule::side::key}) {
        for (const schedule::block& b : side == schedule::side::query ? tile.queries : tile.keys) {
          if (b.side != side) refuse_tile("has a block of the other side among its queries or keys");
          if (b.shard < 0 || b.shard >= work.world || b.chunk >= work.chunks || b.slice != 0) {
            refuse_tile("names chunk " + std::to_string(b.chunk) + " of shard " + std::to_string(b.shard) + ", slice " +
                        std::to_string(b.slice) + ", which does not exist");
          }
        }
      }
    }
  }
}

/// The forward programs of all ranks, not yet finished. A rank's k-th tile is computed in the same step as every other
/// rank's, and a block that it needs of another rank leaves that one a step before. A rank whose first tile needs such
/// a block begins a step later. Partials leave for their owners in the step after the last tile that adds to them.
[[nodiscard]] inline schedule::list<schedule::program> unallocated_programs(const assignment& work) {
  check_assignment(work);
  const auto ranks = static_cast<std::size_t>(work.world);
  const std::size_t blocks = ranks * static_cast<std::size_t>(work.chunks);
  const auto index_of = [&](const schedule::block& b) {
    return static_cast<std::size_t>(b.shard) * static_cast<std::size_t>(work.chunks) + b.chunk;
  };
  std::vector<direct_message> messages;
  std::vector<int> first_step(ranks);
  int steps = 0;
  constexpr int never = -1;
  std::vector<char> arrived(2 * blocks);
  std::vector<int> last_tile(blocks);
  for (std::size_t r = 0; r < ranks; ++r) {
    const std::vector<assignment::product>& tiles = work.of_rank[r];
    const int rank = static_cast<int>(r);
    const auto is_foreign = [&](const schedule::block& b) { return b.shard != rank; };
    if (!tiles.empty()) {
      first_step[r] = std::any_of(tiles[0].queries.begin(), tiles[0].queries.end(), is_foreign) ||
                              std::any_of(tiles[0].keys.begin(), tiles[0].keys.end(), is_foreign)
                          ? 1
                          : 0;
    }
    std::fill(arrived.begin(), arrived.end(), char{0});
    std::fill(last_tile.begin(), last_tile.end(), never);
    std::vector<schedule::block> foreign_queries;
    for (std::size_t t = 0; t < tiles.size(); ++t) {
      const int step = first_step[r] + static_cast<int>(t);
      const auto fetch = [&](const schedule::block& b) {
        char& has = arrived[2 * index_of(b) + static_cast<std::size_t>(b.side)];
        if (has != 0 || b.shard == rank) return;
        has = 1;
        messages.push_back({step - 1, schedule::payload::operand, b.shard, rank, b});
        if (b.side == schedule::side::query) foreign_queries.push_back(b);
      };
      for (const schedule::block& b : tiles[t].queries) fetch(b), last_tile[index_of(b)] = step;
      for (const schedule::block& b : tiles[t].keys) fetch(b);
    }
    for (const schedule::block& b : foreign_queries) {
      messages.push_back({last_tile[index_of(b)] + 1, schedule::payload::partial, rank, b.shard, b});
      steps = (std::max)(steps, last_tile[index_of(b)] + 2);
    }
    steps = (std::max)(steps, first_step[r] + static_cast<int>(tiles.size()));
  }
  std::stable_sort(messages.begin(), messages.end(),
                   [](const direct_message& a, const direct_message& b) { return a.of_exchange() < b.of_exchange(); });

  // Exchanges are runs of messages. Those of each rank, in their order, which both ends share.
  struct run {
    std::size_t first;
    std::size_t end;
  };
  std::vector<std::vector<run>> exchanges(ranks);
  for (std::size_t first = 0; first < messages.size();) {
    std::size_t end = first + 1;
    while (end < messages.size() && messages[end].of_exchange() == messages[first].of_exchange()) ++end;
    exchanges[static_cast<std::size_t>(messages[first].from)].push_back({first, end});
    exchanges[static_cast<std::size_t>(messages[first].to)].push_back({first, end});
    first = end;
  }
  schedule::list<schedule::program> programs(work.world);
  for (std::size_t r = 0; r < ranks; ++r) {
    const int rank = static_cast<int>(r);
    schedule::builder written{rank, work.world, schedule::pass::forward, 1, work.chunks};
    std::size_t next = 0;
    for (int step = 0; step < steps; ++step) {
      for (; next < exchanges[r].size() && messages[exchanges[r][next].first].step == step; ++next) {
        const auto [first, end] = exchanges[r][next];
        const direct_message& all = messages[first];
        const bool sends = all.from == rank;
        written.begin_exchange(sends ? all.to : schedule::no_rank, sends ? schedule::no_rank : all.from,
                               {static_cast<int>(all.payload), 1}, all.payload);
        for (std::size_t m = first; m < end; ++m) {
          sends ? written.send(messages[m].block) : written.receive(messages[m].block);
        }
      }
      const int tile = step - first_step[r];
      if (tile >= 0 && static_cast<std::size_t>(tile) < work.of_rank[r].size()) {
        for (const schedule::block& b : work.of_rank[r][static_cast<std::size_t>(tile)].queries) written.add_to_tile(b);
        for (const schedule::block& b : work.of_rank[r][static_cast<std::size_t>(tile)].keys) written.add_to_tile(b);
      }
      written.next_step();
    }
    programs[rank] = written;
  }
  return programs;
}

}  // namespace orrery::detail

namespace orrery {

/// The finished forward programs of all ranks that compute this assignment, with direct messages: each rank gets the
/// blocks that it needs from their owners, one step before the first tile that needs them, and sends the partials of
/// queries that it does not own home after their last tile. The backward is derived from them (`derive_backward`).
///
/// Nothing is proven here: `verify(programs, relation)` says whether every visible pair is computed exactly once. Time:
/// linear in the blocks that tiles name, and m log m for m messages. Throws `std::invalid_argument` if a tile is empty
/// or names a block that does not exist.
[[nodiscard]] inline schedule::list<schedule::program> programs_of(const assignment& work) {
  schedule::list<schedule::program> programs = detail::unallocated_programs(work);
  for (schedule::program& one : programs) schedule::finish(one);
  return programs;
}

}  // namespace orrery
