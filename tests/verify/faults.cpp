// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0

// Faults in topologies as a user might write them, and the messages that name them.

#include <array>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/draw/grid.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/placed.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/verify/verify.hpp"

#include "verify/editable.hpp"
#include "verify/every_topology.hpp"

namespace faults_test {

using namespace orrery;

using namespace orrery::schedule;

namespace {

/// A ring with a mistake in it, chosen by name.
struct wrong_ring {
  enum mistake {
    forgets_the_last_hop,
    forgets_the_last_tile,
    repeats_the_first_tile,
    hops_by_two,
    tile_before_arrival,
    receives_only,
    sends_only,
    names_another_block,
    ignores_the_rank,
    forgets_its_slices,
    uses_lane_16,
    is_right
  };
  mistake made;

  [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
    builder schedule{made == ignores_the_rank ? 0 : rank, world};
    for (int hop = 0; hop < world; ++hop) {
      const bool last = hop + 1 == world;
      const int slice = made == forgets_its_slices ? rank : 0;
      const int lane = made == uses_lane_16 ? 16 : 0;
      const int next = (rank + (made == hops_by_two ? 2 : 1)) % world;
      const int previous = (rank + world - (made == hops_by_two ? 2 : 1)) % world;
      if (!last && !(made == forgets_the_last_hop && hop + 2 == world)) {
        schedule.begin_exchange(made == receives_only ? no_rank : next, made == sends_only ? no_rank : previous,
                                {lane});
        schedule.send(key(rank - hop).in_slice(slice));
        schedule.receive(key(rank - hop - (made == names_another_block && hop > 0 ? 2 : 1)).in_slice(slice));
      }
      if (!(made == forgets_the_last_tile && last)) {
        schedule.interact(query(rank).in_slice(slice), key(rank - hop - (made == tile_before_arrival ? 1 : 0)));
      }
      if (made == repeats_the_first_tile && hop == 1) schedule.add_to_tile(key(rank));
      schedule.next_step();
    }
    return schedule;
  }
};

/// Each rank waits until its message has been taken before it takes its neighbour's.
struct circle {
  [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
    builder schedule{rank, world};
    schedule.all_gather({0, world}, side::key);
    schedule.next_step();
    schedule.begin_exchange((rank + 1) % world, no_rank, {1});
    schedule.send(query(rank));
    schedule.interact(query(rank), keys(rank, world));
    schedule.next_step();
    schedule.begin_exchange(no_rank, (rank + world - 1) % world, {1});
    schedule.receive(query(rank - 1));
    return schedule;
  }
};

/// Two ranks that need each other's keys. Rank r posts its send in step sends[r] and its receive in step receives[r],
/// and waits for either until the next step.
list<program> two_ranks(const std::array<int, 2>& sends, const std::array<int, 2>& receives) {
  list<program> both(2);
  for (int rank = 0; rank < 2; ++rank) {
    builder schedule{rank, 2};
    for (int i = 0; i < 4; ++i) {
      if (i == sends[static_cast<unsigned>(rank)]) {
        schedule.begin_exchange(1 - rank, no_rank);
        schedule.send(key(rank));
      }
      if (i == receives[static_cast<unsigned>(rank)]) {
        schedule.begin_exchange(no_rank, 1 - rank);
        schedule.receive(key(1 - rank));
      }
      schedule.next_step();
    }
    schedule.interact(query(rank), keys(0, 2));
    both[rank] = schedule;
    finish(both[rank]);
  }
  return both;
}

/// Three ranks, to each of which the queries of both others come in steps 1 and 2. Each sends the partial of the rank
/// before it home in step `sends[0]`, that of the other one in step `sends[1]`; they are in flight for `steps`.
list<program> partials_go_home(const std::array<int, 2>& sends, const std::array<int, 2>& steps) {
  list<program> all(3);
  for (int rank = 0; rank < 3; ++rank) {
    builder schedule{rank, 3};
    for (int i = 0; i <= 5; ++i) {
      if (i == 0) schedule.shift(query(rank), +1);
      if (i == 0) schedule.shift(query(rank), +2, {1, 2});
      if (i == 1) schedule.interact(query(rank - 1), key(rank));
      for (const int distance : {1, 2}) {
        const auto which = static_cast<unsigned>(distance - 1);
        if (i != sends[which]) continue;
        schedule.begin_exchange((rank + 3 - distance) % 3, (rank + distance) % 3, {2 + distance, steps[which]},
                                payload::partial);
        schedule.send(query(rank - distance));
        schedule.receive(query(rank));
      }
      if (i == sends[1] - 1) schedule.interact(query(rank - 2), key(rank));
      if (i == sends[1]) schedule.interact(query(rank), key(rank));
      schedule.next_step();
    }
    all[rank] = schedule;
    finish(all[rank]);
  }
  return all;
}

/// The slots in which rank 0 begins partials, in order.
std::vector<int*> slots_of_partials(program& p) {
  std::vector<int*> slots;
  for (held_block& q : p.queries)
    if (q.slot != no_slot) slots.push_back(&q.slot);
  return slots;
}

/// The slot in which a partial arrives whose exchange is posted in `step`.
int& slot_of_arrival(program& p, int step) {
  for (const exchange& x : p.exchanges)
    if (x.payload == payload::partial && x.posted == step) return p.received[x.received.first].slot;
  throw std::logic_error{"no partial is received in this step"};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("mistakes that all ranks make alike are found by symmetry and without it") {
  struct expectation {
    wrong_ring::mistake made;
    fault found;
  };
  for (const expectation& expected : {
           expectation{wrong_ring::forgets_the_last_hop, fault::operand_missing},
           expectation{wrong_ring::forgets_the_last_tile, fault::pair_missing},
           expectation{wrong_ring::repeats_the_first_tile, fault::pair_computed_twice},
           expectation{wrong_ring::hops_by_two, fault::blocks_disagree},
           expectation{wrong_ring::tile_before_arrival, fault::operand_missing},
           expectation{wrong_ring::receives_only, fault::receive_unmatched},
           expectation{wrong_ring::sends_only, fault::operand_missing},
           expectation{wrong_ring::names_another_block, fault::operand_missing},
           expectation{wrong_ring::ignores_the_rank, fault::program_of_another},
           expectation{wrong_ring::forgets_its_slices, fault::block_outside_world},
           expectation{wrong_ring::uses_lane_16, fault::lane_does_not_exist},
           expectation{wrong_ring::is_right, fault::none},
       }) {
    for (const int world : {3, 4, 7, 8}) {
      for (const pass p : {pass::forward, pass::circulate_keys}) {
        // A derived backward has the ranks that it was derived for.
        if (expected.made == wrong_ring::ignores_the_rank && p != pass::forward) continue;
        const wrong_ring topology{expected.made};
        CAPTURE(static_cast<int>(expected.made));
        CAPTURE(world);
        const verdict by_symmetry = verify(topology, world, p);
        INFO(by_symmetry.message());
        CHECK(by_symmetry.found == expected.found);
        const verdict by_all_ranks = verify(programs_of(topology, world, p));
        INFO(by_all_ranks.message());
        CHECK(by_all_ranks.found == expected.found);
        CHECK(by_all_ranks.rank == by_symmetry.rank);
        CHECK(by_all_ranks.step == by_symmetry.step);
        CHECK((by_all_ranks.block == by_symmetry.block));
        CHECK(by_all_ranks.peer == by_symmetry.peer);
        CHECK(by_all_ranks.message() == by_symmetry.message());
      }
    }
  }
}

TEST_CASE("a program for another rank, world, pass or number of slices than its topology's is refused") {
  struct my_topology {
    int rank = 0, world = 0, slice_count = 0;
    bool forgets_pass = false;
    [[nodiscard]] constexpr int slices(int) const { return 1 + slice_count; }
    [[nodiscard]] constexpr orrery::program program(int of_rank, int of_world, pass p) const {
      return ring::program((of_rank + rank) % of_world, of_world + world, forgets_pass ? pass::forward : p);
    }
  };
  const pass p = pass::circulate_keys;
  CHECK(verify(my_topology{}, 4, p).ok());
  for (const my_topology& wrong : {my_topology{.rank = 1}, my_topology{.world = 4}, my_topology{.slice_count = 1},
                                   my_topology{.forgets_pass = true}}) {
    const verdict found = verify(wrong, 4, p);
    CHECK(found.found == fault::program_of_another);
    CHECK(found.rank == 0);
  }
}

TEST_CASE("a rank that differs from all others is looked at") {
  struct my_topology {
    int different;
    [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
      return wrong_ring{rank == different ? wrong_ring::forgets_the_last_tile : wrong_ring::is_right}.program(rank,
                                                                                                              world);
    }
  };
  for (const int world : {4, 6, 8, 9}) {
    for (int different = 0; different < world; ++different) {
      const verdict found = verify(my_topology{different}, world);
      CHECK(found.found == fault::pair_missing);
      CHECK((found.block == block{side::query, 0, different, 0}));
      CHECK(found.peer == (different + 1) % world);
    }
  }
}

TEST_CASE("a rank that differs is looked at wherever it is in the period of the others") {
  struct my_topology {
    int different;
    [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
      orrery::program p = concentric<2>::program(rank, world);
      if (rank == different) p.steps[p.steps.size() - 2].tile = {{0, 0}, {0, 0}};
      return p;
    }
  };
  for (const int world : {6, 8}) {
    REQUIRE(verify(my_topology{world}, world).ok());
    for (int different = 0; different < world; ++different) {
      CAPTURE(different);
      CHECK(verify(my_topology{different}, world).found == fault::pair_missing);
    }
  }
}

TEST_CASE("a missing pair is found among all keys of a large world") {
  // Pairs are kept in words of 64 keys; 130 ranks need three of them, of which the last is not full.
  const int world = 130;
  for (const int forgotten : {0, 63, 64, 66, 127, 128, 129}) {
    list<program> all = programs_of(ring{}, world);
    for (step& now : all[0].steps) {
      if (all[0].keys[now.tile.keys.first].block.shard == forgotten) now.tile = {{0, 0}, {0, 0}};
    }
    const verdict found = verify(all);
    INFO(found.message());
    CHECK(found.found == fault::pair_missing);
    CHECK((found.block == block{side::query, 0, 0, 0}));
    CHECK(found.peer == forgotten);
  }
}

TEST_CASE("a circle of waiting ranks is a deadlock") {
  for (const int world : {2, 3, 4, 9}) {
    const verdict by_symmetry = verify(circle{}, world);
    const list<program> programs = programs_of(circle{}, world);
    INFO(draw_grid(programs));
    INFO(by_symmetry.message());
    CHECK(by_symmetry.found == fault::deadlock);
    CHECK(by_symmetry.rank == 0);
    CHECK(by_symmetry.step == 2);
    CHECK(by_symmetry.peer == 1);
    CHECK(verify(programs).found == fault::deadlock);
  }
  CHECK(verify(circle{}, 1).ok());
}

TEST_CASE("two ranks deadlock exactly if each waits before it posts what the other waits for") {
  const auto at = [](const std::array<int, 2>& steps, int rank) { return steps[static_cast<unsigned>(rank)]; };
  int deadlocks = 0;
  for (int choice = 0; choice < 4 * 4 * 4 * 4; ++choice) {
    const std::array<int, 2> sends{choice % 4, choice / 4 % 4};
    const std::array<int, 2> receives{choice / 16 % 4, choice / 64 % 4};
    const list<program> programs = two_ranks(sends, receives);
    const verdict found = verify(programs);
    // Rank 0 may not go on beyond the earlier one of its posts before rank 1 has posted that one's counterpart, and so
    // on: they pass the two messages in one order, or in the same step.
    const auto order = [&](int rank) {
      const int ours = rank == 0 ? at(sends, 0) : at(receives, 1);  // the message from 0 to 1
      const int theirs = rank == 0 ? at(receives, 0) : at(sends, 1);
      return ours < theirs ? -1 : ours > theirs ? 1 : 0;
    };
    const bool deadlock = order(0) * order(1) < 0;
    CAPTURE(choice);
    INFO(found.message());
    INFO(draw_grid(programs));
    CHECK(found.found == (deadlock ? fault::deadlock : fault::none));
    deadlocks += deadlock ? 1 : 0;
  }
  CHECK(deadlocks == 2 * 6 * 6);
}

TEST_CASE("a deadlock of some ranks does not hide behind the others' progress") {
  // Ranks 1 and 2 wait for each other; rank 0 and 3 get on.
  const int world = 4;
  list<program> programs(world);
  for (int rank = 0; rank < world; ++rank) {
    builder schedule{rank, world};
    schedule.all_gather({0, world}, side::key);
    schedule.next_step();
    const bool stuck = rank == 1 || rank == 2;
    if (stuck) {
      schedule.begin_exchange(3 - rank, no_rank, {1});
      schedule.send(query(rank));
    }
    schedule.interact(query(rank), keys(0, world));
    schedule.next_step();
    if (stuck) {
      schedule.begin_exchange(no_rank, 3 - rank, {1});
      schedule.receive(query(3 - rank));
    }
    programs[rank] = schedule;
    finish(programs[rank]);
  }
  const verdict found = verify(programs);
  INFO(found.message());
  CHECK(found.found == fault::deadlock);
  CHECK(found.rank == 1);
  CHECK(found.step == 2);
  CHECK(found.peer == 2);
}

TEST_CASE("a verdict is a message with its place and a way out") {
  CHECK(verify(ring{}, 8).message() == "the schedule is right for 8 ranks");

  const std::string missing = verify(wrong_ring{wrong_ring::forgets_the_last_tile}, 3).message();
  CHECK(missing ==
        "query shard 0 never meets key shard 1; let the two interact, for example on rank 0, which has the queries");

  const std::string early = verify(wrong_ring{wrong_ring::tile_before_arrival}, 3).message();
  CHECK(early ==
        "rank 0, step 0: key shard 2 is used, but it is received in step 0 from rank 2 in lane 0, and arrives by step "
        "1; use it from step 1 on, or receive it in an earlier step");

  const std::string twice = verify(wrong_ring{wrong_ring::repeats_the_first_tile}, 3).message();
  CHECK(twice == "rank 0, step 1: query shard 0 meets key shard 0 for the second time; leave one of the two tiles out");

  const std::string lane = verify(wrong_ring{wrong_ring::uses_lane_16}, 3).message();
  CHECK(contains(lane, "rank 0, step 0: lane 16 does not exist"));

  const std::string unsent = verify(wrong_ring{wrong_ring::receives_only}, 3).message();
  CHECK(contains(unsent, "rank 0, step 0: key shard 2 is awaited from rank 2"));

  const std::string other = verify(wrong_ring{wrong_ring::ignores_the_rank}, 3).message();
  CHECK(contains(other, "the program of rank 1 is for another rank, world, pass or number of slices"));

  const std::string circular = verify(circle{}, 2).message();
  CHECK(contains(circular, "rank 0, step 2: the rank waits for rank 1"));

  const std::string refusal = verify(wallfacer<3>{}, 8).message();
  CHECK(contains(refusal, "a world of 8 ranks is refused: the topology needs a world that C*C divides"));
  CHECK(contains(refusal, "concentric<C>"));

  std::ostringstream printed;
  printed << verify(ring{}, 8);
  CHECK(printed.str() == "the schedule is right for 8 ranks");
}

namespace {

/// What the verifier says of a ring of four ranks, of which one rank's program is changed.
template <class Change>
std::string message_of_ring(int rank, const Change& change) {
  list<program> all = programs_of(ring{}, 4);
  editable::change(all, rank, [&](editable::program& p) { change(p.steps); });
  return verify(all).message();
}

/// A topology that forgets to say which worlds it refuses.
template <class Topology>
struct forgets_unsupported_reason {
  [[nodiscard]] constexpr int slices(int world) const { return slices_of(Topology{}, world); }
  [[nodiscard]] constexpr orrery::program program(int rank, int world, pass p) const {
    return Topology{}.program(rank, world, p);
  }
};

/// In all worlds that the topology refuses, from its divisor on.
template <class Topology>
void expect_world_in_message(int divisor) {
  const forgets_unsupported_reason<Topology> topology;
  for (int world = divisor + 1; world < 3 * divisor; ++world) {
    if (unsupported_reason(Topology{}, world) == nullptr) continue;
    for (const pass p : topologies::every_pass) {
      for (const verdict& found : {verify(topology, world, p), verify(any_topology{topology}, world, p),
                                   verify(placed{topology, teams_in_nodes{}}, world, p),
                                   verify(all_to_all<1, forgets_unsupported_reason<Topology>>{}, world, p)}) {
        const std::string message = found.message();
        CAPTURE(message);
        CHECK_FALSE(found.ok());
        CHECK((contains(message, "give it unsupported_reason(world)") ||
               contains(message, "refuse the world with unsupported_reason(world)")));
        CHECK(contains(message, std::to_string(world) + " ranks"));
      }
    }
  }
}

}  // namespace

TEST_CASE("an operand that is used before it arrives: when it does, and how to wait for it") {
  // Rank 2 receives key shard 1 in step 0, and uses it in step 1.
  CHECK(
      message_of_ring(2, [](auto& steps) { steps[0].exchanges[0].complete_before = 3; }) ==
      "rank 2, step 1: key shard 1 is used, but it is in flight until step 3: it is received in step 0 from rank 1 in "
      "lane 0; use it from step 3 on, or wait for it by letting its exchange take 1 step");
  CHECK(
      message_of_ring(2,
                      [](auto& steps) {
                        steps[1].exchanges[0].sent = {{side::key, 0, 2, 0}};
                        steps[1].keys = {{{side::key, 0, 2, 0}, no_slot}};
                        steps[0].exchanges[0].complete_before = 3;
                        steps[2].keys = {{{side::key, 0, 1, 0}, no_slot}};
                      }) ==
      "rank 2, step 2: key shard 1 is used, but it is in flight until step 3: it is received in step 0 from rank 1 in "
      "lane 0; use it from step 3 on, or wait for it by letting its exchange take 2 steps at most");
  // In the step that posts it, and before.
  CHECK(message_of_ring(2, [](auto& steps) { steps[0].keys[0].block.shard = 1; }) ==
        "rank 2, step 0: key shard 1 is used, but it is received in step 0 from rank 1 in lane 0, and arrives by step "
        "1; use it from step 1 on, or receive it in an earlier step");
  CHECK(message_of_ring(2, [](auto& steps) { steps[0].keys[0].block.shard = 0; }) ==
        "rank 2, step 0: key shard 0 is used, but it is received only in step 1 from rank 1 in lane 0, and arrives by "
        "step 2; use it from step 2 on, or receive it in an earlier step");
}

TEST_CASE("a missing receive: who sends what, in which step and lane") {
  CHECK(
      message_of_ring(2,
                      [](auto& steps) {
                        steps[1].exchanges[0].from = no_rank;
                        steps[1].exchanges[0].received = {};
                      }) ==
      "rank 2, step 2: key shard 0 is used, but it is not received: rank 1 sends it to this rank (in its step 1, lane "
      "0); receive it in that lane and order");
  // Nor sent.
  list<program> all = programs_of(ring{}, 4);
  editable::change(
      all, 1, [](editable::program& p) { p.steps[1].exchanges[0].to = no_rank, p.steps[1].exchanges[0].sent = {}; });
  editable::change(all, 2, [](editable::program& p) {
    p.steps[1].exchanges[0].from = no_rank, p.steps[1].exchanges[0].received = {};
  });
  CHECK(verify(all).message() ==
        "rank 2, step 2: key shard 0 is used, but it is not on this rank, and no rank sends it to this one; receive it "
        "in an earlier step, from a rank that has it");
  // Not used after all.
  CHECK(message_of_ring(2,
                        [](auto& steps) {
                          steps[1].exchanges[0].from = no_rank;
                          steps[1].exchanges[0].received = {};
                          steps[2].exchanges[0].sent = {{side::key, 0, 2, 0}};
                          steps[2].keys = {};
                        }) ==
        "rank 1, step 1: key shard 0 is sent to rank 2 in lane 0, which does not receive it: it expects key shard 3 "
        "instead (in its step 2, lane 0); let it receive this one before, in the same lane");
}

TEST_CASE("a missing send: what the peer sends instead, in which step and lane") {
  CHECK(message_of_ring(1,
                        [](auto& steps) {
                          steps[1].exchanges[0].to = no_rank;
                          steps[1].exchanges[0].sent = {};
                        }) ==
        "rank 2, step 1: key shard 0 is awaited from rank 1 in lane 0, which does not send it: it sends key shard 3 "
        "instead (in its step 2, lane 0); let it send this one before, in the same lane");
  CHECK(
      message_of_ring(1,
                      [](auto& steps) {
                        steps[2].exchanges[0].to = no_rank;
                        steps[2].exchanges[0].sent = {};
                      }) ==
      "rank 2, step 2: key shard 3 is awaited from rank 1 in lane 0, which does not send it; let it, in the same lane "
      "and order");
  // To another rank.
  CHECK(message_of_ring(1, [](auto& steps) { steps[2].exchanges[0].to = 3; }) ==
        "rank 1, step 2: key shard 3 is sent to rank 3 in lane 0, which does not receive it, while rank 2 awaits it "
        "from this rank (in its step 2, lane 0); let the two ends name each other");
  CHECK(message_of_ring(1, [](auto& steps) { steps[2].exchanges[0].from = 3; }) ==
        "rank 0, step 2: key shard 2 is sent to rank 1 in lane 0, which awaits it from rank 3 instead (in its step 2, "
        "lane 0); let the two ends name each other");
}

TEST_CASE("a message whose two ends are in different lanes names both") {
  for (const std::size_t hop : {0U, 1U, 2U}) {
    const std::string step = std::to_string(hop);
    CHECK(message_of_ring(3,
                          [&](auto& steps) {
                            steps[hop].exchanges.push_back(steps[hop].exchanges[0]);
                            steps[hop].exchanges[0].from = no_rank, steps[hop].exchanges[0].received = {};
                            steps[hop].exchanges[1].to = no_rank, steps[hop].exchanges[1].sent = {};
                            steps[hop].exchanges[1].lane = 5;
                          }) == "rank 2, step " + step + ": key shard " + std::to_string(2 - hop) +
                                    " is sent to rank 3 in lane 0, which receives it in lane 5 (in its step " + step +
                                    "); name one lane at both ends");
  }
  // The sender's lane is the one that differs.
  const std::string message = message_of_ring(0, [&](auto& steps) {
    steps[2].exchanges.push_back(steps[2].exchanges[0]);
    steps[2].exchanges[0].from = no_rank, steps[2].exchanges[0].received = {};
    steps[2].exchanges[1].to = no_rank, steps[2].exchanges[1].sent = {};
    steps[2].exchanges[0].lane = 5;
  });
  CHECK(
      message ==
      "rank 0, step 2: key shard 2 is sent to rank 1 in lane 5, which receives it in lane 0 (in its step 2); name one "
      "lane at both ends");
}

TEST_CASE("a receiver that names another block is told what arrives") {
  CHECK(
      verify(wrong_ring{wrong_ring::hops_by_two}, 4).message() ==
      "rank 2, step 0: key shard 1 is expected from rank 0 in lane 0, which sends key shard 0 instead (in its step 0, "
      "lane 0); name the same blocks in the same order at both ends");
  // The second of two blocks; a block too few; a partial.
  const list<program> right = programs_of(concentric<1, 2>{}, 4);
  list<program> all = right;
  editable::change(all, 1, [](editable::program& p) { p.steps[1].exchanges[0].sent[1] = {side::query, 0, 1, 0}; });
  CHECK(verify(all).message() ==
        "rank 3, step 1: key shard 1 is expected from rank 1 in lane 0, which sends query shard 1 instead (in its step "
        "1, lane 0); name the same blocks in the same order at both ends");
  all = right;
  editable::change(all, 1, [](editable::program& p) { p.steps[1].exchanges[0].sent.pop_back(); });
  CHECK(verify(all).message() ==
        "rank 3, step 1: key shard 0 is expected from rank 1 in lane 0, which sends 1 block instead of 2 (in its step "
        "1, lane 0); name the same blocks in the same order at both ends");
  all = programs_of(all_gather{}, 2, pass::circulate_keys);
  editable::change(all, 1, [](editable::program& p) {
    std::vector<editable::exchange>& last = p.steps[2].exchanges;
    last.push_back(last[0]);
    last[0].from = no_rank, last[0].received = {};
    last[1].to = no_rank, last[1].sent = {};
    last[1].payload = payload::operand;
  });
  CHECK(verify(all).message() ==
        "rank 1, step 2: key shard 1 is expected from rank 0 in lane 0, which sends its partial (in its step 2, lane "
        "0); name the same blocks in the same order at both ends");
}

TEST_CASE("a world that a topology forgets to refuse is in the message") {
  expect_world_in_message<wallfacer<2>>(4);
  expect_world_in_message<wallfacer<3>>(9);
  expect_world_in_message<concentric<3>>(3);
  expect_world_in_message<concentric<2, 2>>(4);
  expect_world_in_message<double_ring<4>>(4);
  expect_world_in_message<usp<3>>(3);
  CHECK(
      verify(forgets_unsupported_reason<concentric<3>>{}, 4).message() ==
      "a world of 4 ranks does not suit the topology, or a peer is wrong: rank 3, step 0, names peer 4, but peers are "
      "0 to 3; refuse the world with unsupported_reason(world), or correct the peer");
  CHECK(verify(forgets_unsupported_reason<wallfacer<2>>{}, 6).message() ==
        "rank 4, step 1: key shard 4 is sent to rank 2 in lane 0, which does not receive it; let it, in the same lane "
        "and order; or, if the topology cannot have 6 ranks, give it unsupported_reason(world), which says so");
  // Not where the topology says itself which worlds it refuses, nor where all ranks err alike.
  CHECK_FALSE(contains(verify(wrong_ring{wrong_ring::hops_by_two}, 6).message(), "unsupported_reason"));
}

TEST_CASE("a refusal names the topology that refuses, inside others too, and counts ranks") {
  const std::string reason{unsupported_reason(wallfacer<2>{}, 2)};
  using nested = all_to_all<2, wallfacer<2>>;
  const std::string expected =
      "a world of 4 ranks is refused: the topology runs wallfacer<2> over 2 ranks, which " + reason;
  CHECK(verify(nested{}, 4).message() == expected);
  CHECK(verify(any_topology{nested{}}, 4).message() == expected);
  CHECK(verify(placed{nested{}, teams_in_nodes{}}, 4).message() == expected);
  CHECK(verify(all_to_all<2, all_to_all<3, wallfacer<2>>>{}, 6).message() ==
        "a world of 6 ranks is refused: the topology runs wallfacer<2> over 1 rank, which " + reason);
  CHECK(verify(all_to_all<3, nested>{}, 9).message() ==
        "a world of 9 ranks is refused: the topology runs all_to_all<2,wallfacer<2>> over 3 ranks, which " +
            std::string{unsupported_reason(usp<2>{}, 3)});
  CHECK(verify(nested{}, 5).message() ==
        "a world of 5 ranks is refused: the topology " + std::string{unsupported_reason(usp<2>{}, 5)});
  CHECK_THROWS_WITH_AS(
      static_cast<void>(program_of(nested{}, 0, 4)),
      ("orrery: topology all_to_all<2,wallfacer<2>> over 4 ranks runs wallfacer<2> over 2 ranks, which " + reason)
          .c_str(),
      std::invalid_argument);
  CHECK(verify(ring{}, 1).message() == "the schedule is right for 1 rank");
  CHECK(verify(wallfacer<2>{}, 1).message() == "a world of 1 rank is refused: the topology " + reason);
  CHECK_THROWS_WITH_AS(static_cast<void>(program_of(wallfacer<2>{}, 0, 1)),
                       ("orrery: topology wallfacer<2> over 1 rank " + reason).c_str(), std::invalid_argument);
}

TEST_CASE("every fault has a message of its own with all its numbers") {
  std::string before;
  for (int f = static_cast<int>(fault::program_of_another); f <= static_cast<int>(fault::deadlock); ++f) {
    const verdict v{static_cast<fault>(f), 64, 11, 22, {side::key, 0, 33, 5}, 44, nullptr};
    const std::string message = v.message();
    CAPTURE(message);
    CHECK(message != before);
    CHECK(message != "unknown fault");
    CHECK(contains(message, "rank 11"));
    CHECK(contains(message, ";") != (v.found == fault::peer_outside_world || v.found == fault::exchange_takes_no_step ||
                                     v.found == fault::sides_confused));
    CHECK(message.back() != '.');
    switch (v.found) {
      case fault::program_of_another:
        break;
      case fault::pair_missing:
      case fault::partial_stranded:
        CHECK(contains(message, "33 (slice 5)"));
        break;
      case fault::lane_does_not_exist:
      case fault::tensor_alone:
      case fault::peer_outside_world:
      case fault::exchange_takes_no_step:
      case fault::deadlock:
        CHECK(contains(message, "rank 11, step 22: "));
        CHECK(contains(message, "44"));
        break;
      default:
        CHECK(contains(message, "rank 11, step 22: "));
        CHECK(contains(message, "key shard 33 (slice 5)"));
    }
    before = message;
  }
  CHECK(verdict{static_cast<fault>(200)}.message() == "unknown fault");
}

TEST_CASE("at run time a verdict converts to bool") {
  verdict v;
  CHECK(static_cast<bool>(v));
  v.found = fault::deadlock;
  CHECK_FALSE(static_cast<bool>(v));
}

TEST_CASE("an operand is used after its slot was given to another one") {
  list<program> all(3);
  for (int rank = 0; rank < 3; ++rank) {
    builder schedule{rank, 3};
    schedule.shift(key(rank), 1);
    schedule.next_step();
    schedule.shift(key(rank), 2);
    schedule.next_step();
    schedule.interact(query(rank), keys(rank, 3));
    all[rank] = schedule;
    finish(all[rank]);
  }
  CHECK(verify(all).ok());
  all[0].received[1].slot = all[0].received[0].slot;
  const verdict v = verify(all);
  CHECK(v.found == fault::slot_overwritten);
  CHECK(v.rank == 0);
  CHECK(v.step == 2);
}

TEST_CASE("a slot is not used again while its operand is being sent, though its last tile is done") {
  list<program> right(3);
  for (int rank = 0; rank < 3; ++rank) {
    builder schedule{rank, 3};
    schedule.shift(key(rank), -1);
    schedule.interact(query(rank), key(rank));
    schedule.next_step();
    schedule.shift(key(rank + 1), -1, {1, 3});  // in flight until step 4
    schedule.interact(query(rank), key(rank + 1));
    schedule.next_step();
    schedule.shift(key(rank), +1, {2});
    schedule.next_step();
    schedule.next_step();
    schedule.interact(query(rank), key(rank + 2));
    right[rank] = schedule;
    finish(right[rank]);
  }
  INFO(draw_grid(right));
  INFO(verify(right).message());
  REQUIRE(verify(right).ok());
  list<program> all = right;
  all[0].received[2].slot = all[0].received[0].slot;
  const verdict v = verify(all);
  INFO(v.message());
  CHECK(v.found == fault::slot_overwritten);
  CHECK(v.rank == 0);
  CHECK(v.step == 2);
  CHECK((v.block == block{side::key, 0, 1, 0}));
}

TEST_CASE("a slot is not used again while its partial is being sent") {
  // Rank 0 gives up its first partial in step 2, and it is in flight until step 5. Its second one begins in step 3; the
  // second arrival is posted in step 4.
  const list<program> right = partials_go_home({2, 4}, {3, 1});
  INFO(draw_grid(right));
  INFO(verify(right).message());
  REQUIRE(verify(right).ok());

  list<program> begins = right;
  const std::vector<int*> slots = slots_of_partials(begins[0]);
  REQUIRE(slots.size() == 2);
  *slots[1] = *slots[0];
  verdict v = verify(begins);
  INFO(v.message());
  CHECK(v.found == fault::slot_overwritten);
  CHECK(v.rank == 0);
  CHECK(v.step == 3);
  CHECK((v.block == block{side::query, 0, 2, 0}));

  list<program> arrives = right;
  slot_of_arrival(arrives[0], 4) = *slots_of_partials(arrives[0])[0];
  v = verify(arrives);
  INFO(v.message());
  CHECK(v.found == fault::slot_overwritten);
  CHECK(v.rank == 0);
  CHECK(v.step == 4);
  CHECK((v.block == block{side::query, 0, 2, 0}));
}

TEST_CASE("a slot is used again as soon as its partial has been sent") {
  // The same, but the first partial has been sent by step 3.
  list<program> all = partials_go_home({2, 4}, {1, 1});
  REQUIRE(verify(all).ok());
  for (program& p : all) {
    const std::vector<int*> slots = slots_of_partials(p);
    REQUIRE(slots.size() == 2);
    CHECK(*slots[1] == *slots[0]);  // `finish` does so
  }
}

TEST_CASE("a partial does not arrive in a slot that holds another one") {
  // Rank 0's first partial is held from step 1 until step 5; another one's arrival is posted in step 4.
  const list<program> right = partials_go_home({5, 4}, {1, 1});
  INFO(verify(right).message());
  REQUIRE(verify(right).ok());
  list<program> arrives = right;
  slot_of_arrival(arrives[0], 4) = *slots_of_partials(arrives[0])[0];
  const verdict v = verify(arrives);
  INFO(v.message());
  CHECK(v.found == fault::slot_overwritten);
  CHECK(v.rank == 0);
  CHECK(v.step == 4);
  CHECK((v.block == block{side::query, 0, 2, 0}));
}

}  // namespace faults_test
