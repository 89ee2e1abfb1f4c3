// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// What is done to programs after they are written: finish, derive_backward, is_rotation, is_relabeling.

#include <algorithm>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/draw/grid.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/derive_backward.hpp"
#include "orrery/schedule/detail/slot_allocation.hpp"
#include "orrery/schedule/detail/symmetry.hpp"
#include "orrery/verify/verify.hpp"

#include "verify/every_topology.hpp"

namespace passes_test {

using namespace orrery;

using namespace orrery::schedule;

namespace {

/// Not a constant, so that no compiler tries to evaluate it.
template <class Topology>
traffic_report measure(const Topology& t, int world, pass p) {
  return traffic(t, world, p);
}

/// The most operands that are needed at once: received, and still to be read, in the same step.
int most_needed_at_once(const program& p, side s) {
  std::vector<int> needed(static_cast<std::size_t>(p.steps.size()));
  for (const exchange& x : p.exchanges) {
    if (x.payload != payload::operand) continue;
    for (int r = x.received.first; r < x.received.end(); ++r) {
      const block& what = p.received[r].block;
      if (what.side != s) continue;
      int last = x.complete_before - 1;
      for (int i = x.complete_before; i < p.steps.size(); ++i) {
        for (const auto& [held, which] :
             {std::pair{&p.queries, p.steps[i].tile.queries}, {&p.keys, p.steps[i].tile.keys}}) {
          for (int h = which.first; h < which.end(); ++h) last = (*held)[h].block == what ? i : last;
        }
        for (int e = p.steps[i].exchanges.first; e < p.steps[i].exchanges.end(); ++e) {
          const exchange& y = p.exchanges[e];
          for (int b = y.sent.first; y.payload == payload::operand && b < y.sent.end(); ++b) {
            if (p.sent[b] == what) last = std::max(last, y.complete_before - 1);
          }
        }
      }
      for (int i = x.posted; i <= last; ++i) ++needed[static_cast<std::size_t>(i)];
    }
  }
  return needed.empty() ? 0 : *std::max_element(needed.begin(), needed.end());
}

struct my_gather_of_two_slices {
  [[nodiscard]] static constexpr int slices(int) { return 2; }
  [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
    builder schedule{rank, world, pass::forward, 2};
    for (int distance = 1; distance < world; ++distance) {
      schedule.begin_exchange((rank + distance) % world, (rank + world - distance) % world);
      schedule.send(blocks{side::key, rank, 1, 1, 0, 2});
      schedule.receive(blocks{side::key, rank - distance, 1, 1, 0, 2});
    }
    for (int slice = 0; slice < 2; ++slice) {
      schedule.next_step();
      schedule.interact(query(rank).in_slice(slice), keys(0, world).in_slice(slice));
    }
    return schedule;
  }
};

/// Ranks 2i and 2i + 1 share their queries and halve the keys; each does its own queries first, then the other's.
struct my_two_tiles {
  [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
    const int mate = rank ^ 1;
    const auto half = keys(rank % 2, world / 2, 2);
    builder schedule{rank, world};
    schedule.all_gather({rank / 2 * 2, 2}, side::query);
    schedule.all_gather({rank % 2, world / 2, 2}, side::key);
    schedule.next_step();
    schedule.interact(query(rank), half);
    schedule.next_step();
    schedule.interact(query(mate), half);
    schedule.next_step();
    schedule.reduce_scatter({rank / 2 * 2, 2}, side::query);
    return schedule;
  }
};

}  // namespace

TEST_CASE("finish needs no more slots than blocks are needed at once") {
  for (const topologies::entry& topology : topologies::all_and_in_chunks()) {
    for (const int world : {4, 9, 12, 16}) {
      for (const pass p : topologies::every_pass) {
        if (!topology.admits(world, p) || topology.name.find("wallfacer") != std::string::npos) continue;  // two copies
        CAPTURE(topology.name);
        CAPTURE(world);
        CAPTURE(std::string{name_of(p)});
        const list<program> programs = topology.programs(world, p);
        INFO(draw_grid(programs));
        for (const program& mine : programs) {
          for (const side s : {side::query, side::key}) {
            CHECK(mine.slots_of(s, payload::operand) == most_needed_at_once(mine, s));
            if (!has_partials(p, s)) CHECK(mine.slots_of(s, payload::partial) == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("a ring has two slots, one for what it uses and one for what arrives") {
  for (const int world : {3, 8, 50}) {
    for (int rank = 0; rank < world; rank += 7)
      CHECK(program_of(ring{}, rank, world).slots == std::array<int, 4>{0, 0, 2, 0});
  }
  const program p = program_of(ring{}, 0, 4);
  REQUIRE(p.received.size() == 3);
  CHECK(p.received[0].slot == 0);
  CHECK(p.received[1].slot == 1);
  CHECK(p.received[2].slot == 0);
}

TEST_CASE("a partial that is never sent keeps its slot") {
  builder schedule{0, 3};
  for (int shard = 1; shard < 3; ++shard) {
    schedule.begin_exchange(no_rank, shard);
    schedule.receive(query(shard));
  }
  for (int shard = 1; shard < 3; ++shard) {
    schedule.next_step();
    schedule.interact(query(shard), key(0));
  }
  program p = schedule;
  finish(p);
  CHECK(p.slots_of(side::query, payload::partial) == 2);
}

TEST_CASE("finish can be called again") {
  for (const topologies::entry& topology : topologies::all_and_in_chunks()) {
    for (const pass p : topologies::every_pass) {
      if (!topology.admits(12, p)) continue;
      list<program> once = topology.programs(12, p);
      list<program> twice = once;
      for (program& one : twice) finish(one);
      CHECK(once == twice);
    }
  }
}

TEST_CASE("completions are in the order of posting, each before its step") {
  for (const topologies::entry& topology : topologies::all_and_in_chunks()) {
    for (const pass p : topologies::every_pass) {
      if (!topology.admits(12, p)) continue;
      CAPTURE(topology.name);
      for (const program& mine : topology.programs(12, p)) {
        REQUIRE(mine.completions.size() == mine.exchanges.size());
        std::vector<int> completed(static_cast<std::size_t>(mine.exchanges.size()));
        for (int i = 0; i <= mine.steps.size(); ++i) {
          const range& which = i < mine.steps.size() ? mine.steps[i].completions : mine.final_completions;
          for (int c = which.first; c < which.end(); ++c) {
            CHECK(mine.exchanges[mine.completions[c]].complete_before == i);
            if (c > which.first) CHECK(mine.completions[c] > mine.completions[c - 1]);
            ++completed[static_cast<std::size_t>(mine.completions[c])];
          }
        }
        for (const int times : completed) CHECK(times == 1);
      }
    }
  }
}

TEST_CASE("a backward can be derived from any forward") {
  for (const int world : {1, 2, 3, 5, 8, 9}) {
    CAPTURE(world);
    const list<program> programs = programs_of(topologies::my_ring{}, world, pass::circulate_keys);
    INFO(draw_grid(programs));
    INFO(verify(programs).message());
    CHECK(verify(programs).ok());
    const traffic_report report = measure(topologies::my_ring{}, world, pass::circulate_keys);
    // The operands go round as they did, and the gradients behind them.
    for (const rank_traffic& mine : report.ranks) {
      CHECK(mine.sent == 4 * (world - 1));
      CHECK(mine.blocks_sent == std::array<std::int64_t, 4>{0, 0, world - 1, world - 1});
      CHECK(mine.messages_sent == 2 * (world - 1));
    }
    CHECK(verify(my_gather_of_two_slices{}, world).ok());
    CHECK(verify(my_gather_of_two_slices{}, world, pass::circulate_keys).ok());
    CHECK(measure(my_gather_of_two_slices{}, world, pass::circulate_keys).sent == 4 * (world - 1));
  }
}

TEST_CASE("a derived backward sends a gradient home after the last tile that adds to it") {
  for (const int world : {2, 4, 6, 10}) {
    CHECK(verify(my_two_tiles{}, world).ok());
    const list<program> backward = programs_of(my_two_tiles{}, world, pass::circulate_keys);
    INFO(draw_grid(backward));
    INFO(verify(backward).message());
    CHECK(verify(backward).ok());
    for (const program& mine : backward) {
      int sent = 0;
      for (const exchange& x : mine.exchanges) {
        if (x.payload != payload::partial || x.sent.count == 0 || mine.sent[x.sent.first].side != side::key) continue;
        CHECK(x.posted == 3);
        ++sent;
      }
      CHECK(sent == world / 2 - 1);
    }
  }
}

TEST_CASE("gradients of a derived backward have a lane of their own") {
  // The queries' receive is posted after the gradients', though they are sent before them.
  struct my_late_receive {
    [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
      builder schedule{rank, world};
      schedule.shift(key(rank), +1);
      schedule.interact(query(rank), key(rank));
      schedule.next_step();
      schedule.begin_exchange((rank + 1) % world, no_rank, {0, 3});
      schedule.send(query(rank));
      schedule.interact(query(rank), key(rank - 1));
      schedule.next_step();
      schedule.next_step();
      schedule.begin_exchange(no_rank, (rank + 1) % world);
      schedule.receive(query(rank + 1));
      return schedule;
    }
  };
  CHECK(verify(my_late_receive{}, 2).ok());
  const verdict found = verify(my_late_receive{}, 2, pass::circulate_keys);
  INFO(found.message());
  CHECK(found.ok());
}

TEST_CASE("a derived backward is right for the forward of every topology") {
  for (const topologies::entry& topology : topologies::all_and_in_chunks()) {
    for (const int world : {2, 4, 6, 9, 12, 16}) {
      if (!topology.admits(world, pass::forward)) continue;
      CAPTURE(topology.name);
      CAPTURE(world);
      list<program> backward = derive_backward(topology.programs(world, pass::forward));
      for (program& one : backward) {
        CHECK((one.pass == pass::circulate_keys));
        finish(one);
      }
      INFO(draw_grid(backward));
      INFO(verify(backward).message());
      CHECK(verify(backward).ok());
    }
  }
}

TEST_CASE("a ring's programs are each other's translates") {
  const int world = 6;
  const list<program> programs = programs_of(ring{}, world, pass::circulate_keys);
  for (int a = 0; a < world; ++a) {
    for (int b = 0; b < world; ++b) {
      const int distance = (b - a + world) % world;
      CHECK(is_rotation(programs[a], programs[b], distance));
      CHECK_FALSE(is_rotation(programs[a], programs[b], (distance + 1) % world));
    }
  }
}

TEST_CASE("programs that differ anywhere are no translates") {
  const list<program> programs = detail::unallocated_programs(usp<2>{}, 8, pass::circulate_queries);
  REQUIRE(is_rotation(programs[1], programs[3], 2));
  CHECK_FALSE(is_rotation(programs[0], programs[1], 1));  // another member of the group
  const auto differs = [&](auto change) {
    program changed = programs[3];
    change(changed);
    return !is_rotation(programs[1], changed, 2);
  };
  CHECK_FALSE(differs([](program&) {}));
  CHECK(differs([](program& p) { p.rank = 5; }));
  CHECK(differs([](program& p) { p.world = 16; }));
  CHECK(differs([](program& p) { p.slices = 4; }));
  CHECK(differs([](program& p) { p.pass = pass::circulate_keys; }));
  CHECK(differs([](program& p) { p.steps.push_back(step{p.steps[0]}); }));
  CHECK(differs([](program& p) { --p.steps[0].exchanges.count; }));
  CHECK(differs([](program& p) { --p.steps[1].tile.keys.count; }));
  for (int e = 0; e < programs[3].exchanges.size(); ++e) {
    CHECK(differs([&](program& p) { p.exchanges[e].to = (p.exchanges[e].to + 1) % 8; }));
    CHECK(differs([&](program& p) { p.exchanges[e].to = no_rank; }));
    CHECK(differs([&](program& p) { p.exchanges[e].from = (p.exchanges[e].from + 1) % 8; }));
    CHECK(differs([&](program& p) { ++p.exchanges[e].lane; }));
    CHECK(differs([&](program& p) { ++p.exchanges[e].posted; }));
    CHECK(differs([&](program& p) { ++p.exchanges[e].complete_before; }));
    CHECK(differs([&](program& p) { --p.exchanges[e].sent.count; }));
    CHECK(differs([&](program& p) { --p.exchanges[e].received.count; }));
    CHECK(differs([&](program& p) {
      p.exchanges[e].payload = p.exchanges[e].payload == payload::operand ? payload::partial : payload::operand;
    }));
  }
  const auto each_block = [&](auto block_of, int count) {
    for (int b = 0; b < count; ++b) {
      CHECK(differs([&](program& p) { block_of(p, b).shard = (block_of(p, b).shard + 1) % 8; }));
      CHECK(differs([&](program& p) { block_of(p, b).shard += 8; }));
      CHECK(differs([&](program& p) { block_of(p, b).slice = 1 - block_of(p, b).slice; }));
      CHECK(differs([&](program& p) { block_of(p, b).side = other_side(block_of(p, b).side); }));
    }
  };
  each_block([](program& p, int b) -> block& { return p.sent[b]; }, programs[3].sent.size());
  each_block([](program& p, int b) -> block& { return p.received[b].block; }, programs[3].received.size());
  each_block([](program& p, int b) -> block& { return p.queries[b].block; }, programs[3].queries.size());
  each_block([](program& p, int b) -> block& { return p.keys[b].block; }, programs[3].keys.size());
  // Without slices, a slice must not count on with the rank.
  program alone = detail::unallocated_program(ring{}, 1, 4);
  alone.keys[0].block.slice = 1;
  CHECK_FALSE(is_rotation(detail::unallocated_program(ring{}, 0, 4), alone, 1));
}

TEST_CASE("programs that are renamed get the same slots") {
  for (const auto& [programs, alike] :
       {std::pair{detail::unallocated_programs(ring{}, 6, pass::circulate_keys), 1},
        std::pair{detail::unallocated_programs(wallfacer<2>{}, 8, pass::forward), 0},
        std::pair{detail::unallocated_programs(ulysses{}, 5, pass::forward), 1},
        std::pair{detail::unallocated_programs(usp<4>{}, 4, pass::circulate_keys), 1},
        std::pair{detail::unallocated_programs(double_ring<3>{}, 12, pass::circulate_queries), 1}}) {
    const list<int> first = first_equivalent(programs);
    int different = 0;
    for (int rank = 0; rank < programs.size(); ++rank) {
      different += first[rank] == rank ? 1 : 0;
      program one = programs[rank];
      program other = programs[first[rank]];
      finish(one);
      finish(other);
      CHECK(one.slots == other.slots);
      for (int r = 0; r < one.received.size(); ++r) CHECK(one.received[r].slot == other.received[r].slot);
      for (int k = 0; k < one.keys.size(); ++k) CHECK(one.keys[k].slot == other.keys[k].slot);
      for (int q = 0; q < one.queries.size(); ++q) CHECK(one.queries[q].slot == other.queries[q].slot);
    }
    CHECK(different < programs.size());
    if (alike > 0) CHECK(different == alike);
  }
}

TEST_CASE("programs that differ in more than names are not renamed") {
  const list<program> programs = detail::unallocated_programs(usp<2>{}, 8, pass::circulate_queries);
  REQUIRE(is_relabeling(programs[1], programs[3]));
  const auto differs = [&](auto change) {
    program changed = programs[3];
    change(changed);
    return !is_relabeling(programs[1], changed);
  };
  CHECK_FALSE(differs([](program&) {}));
  CHECK(differs([](program& p) { p.rank = 5; }));  // its home is another one's
  CHECK(differs([](program& p) { p.slices = 4; }));
  CHECK(differs([](program& p) { p.pass = pass::circulate_keys; }));
  CHECK(differs([](program& p) { --p.steps[0].exchanges.count; }));
  CHECK(differs([](program& p) { --p.steps[1].tile.keys.count; }));
  for (int e = 0; e < programs[3].exchanges.size(); ++e) {
    CHECK(differs([&](program& p) { p.exchanges[e].to = p.rank; }));
    CHECK(differs([&](program& p) { p.exchanges[e].to = 8; }));
    CHECK(differs([&](program& p) { p.exchanges[e].to = no_rank; }));
    CHECK(differs([&](program& p) { p.exchanges[e].from = p.rank; }));
    CHECK(differs([&](program& p) { p.exchanges[e].from = -2; }));
    CHECK(differs([&](program& p) { ++p.exchanges[e].lane; }));
    CHECK(differs([&](program& p) { ++p.exchanges[e].complete_before; }));
  }
  const auto each_block = [&](auto block_of, int count) {
    for (int b = 0; b < count; ++b) {
      CHECK(differs([&](program& p) { block_of(p, b).shard += 8; }));
      CHECK(differs([&](program& p) { block_of(p, b).slice += 2; }));
      CHECK(differs([&](program& p) { block_of(p, b).side = other_side(block_of(p, b).side); }));
    }
  };
  each_block([](program& p, int b) -> block& { return p.sent[b]; }, programs[3].sent.size());
  each_block([](program& p, int b) -> block& { return p.received[b].block; }, programs[3].received.size());
  each_block([](program& p, int b) -> block& { return p.queries[b].block; }, programs[3].queries.size());
  each_block([](program& p, int b) -> block& { return p.keys[b].block; }, programs[3].keys.size());
  // One name for two shards, and two for one.
  program ring_of_four = detail::unallocated_program(ring{}, 1, 4);
  CHECK(is_relabeling(detail::unallocated_program(ring{}, 0, 4), ring_of_four));
  ring_of_four.keys[1].block.shard = ring_of_four.keys[2].block.shard;
  CHECK_FALSE(is_relabeling(detail::unallocated_program(ring{}, 0, 4), ring_of_four));
  CHECK_FALSE(is_relabeling(ring_of_four, detail::unallocated_program(ring{}, 0, 4)));
  // Two shards that get one name where no shard has that name itself.
  const auto receives = [](int first, int second) {
    builder schedule{0, 4};
    schedule.begin_exchange(1, 1);
    schedule.receive(key(first));
    schedule.receive(key(second));
    schedule.next_step();
    schedule.interact(query(0), key(first));
    schedule.add_to_tile(key(second));
    return static_cast<program>(schedule);
  };
  CHECK(is_relabeling(receives(1, 2), receives(3, 1)));
  CHECK_FALSE(is_relabeling(receives(1, 2), receives(1, 1)));
  CHECK_FALSE(is_relabeling(receives(1, 1), receives(1, 2)));
  CHECK_FALSE(is_relabeling(receives(1, 2), receives(1, 0)));  // rank 0's own shard keeps its name
}

}  // namespace passes_test
