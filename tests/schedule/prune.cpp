// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/schedule/prune.hpp"

#include <cstdint>
#include <string>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/verify/verify.hpp"

#include "support/finished.hpp"
#include "support/planned.hpp"
#include "support/topologies.hpp"
#include "verify/every_topology.hpp"

namespace prune_test {

using namespace orrery;
using namespace orrery::schedule;

namespace {

/// A causal window of whole shards: a query sees its own and the `most` shards before it.
struct shards_before {
  int most;
  constexpr bool operator()(int query, int key) const { return key <= query && key >= query - most; }
};

template <class Topology, class Visible>
constexpr list<program> pruned(const Topology& t, int world, schedule::pass p, const Visible& visible) {
  return prune(orrery::detail::unallocated_programs(t, world, p), visible);
}

template <class Topology, class Visible>
constexpr bool proven(const Topology& t, int world, schedule::pass p, const Visible& visible) {
  return verify(finished(pruned(t, world, p, visible)), visible).ok();
}

/// The costs, and that the programs are right and cannot be pruned any more.
struct costs {
  double average = 0;
  double busiest = 0;
  int steps = 0;
  bool right = false;

  bool operator==(const costs&) const = default;
};
std::ostream& operator<<(std::ostream& out, const costs& c) {
  return out << "{" << c.average << ", " << c.busiest << ", " << c.steps << (c.right ? "" : ", wrong") << "}";
}

template <class Visible>
costs of(const list<program>& all, const Visible& visible) {
  const list<program> programs = finished(all);
  const traffic_report report = traffic(programs, weights_of(programs[0].pass));
  return {report.total / programs.size(), report.sent, report.steps,
          verify(programs, visible).ok() && prune(all, visible) == all};
}
template <class Topology, class Visible>
costs of(const Topology& t, int world, schedule::pass p, const Visible& visible) {
  return of(pruned(t, world, p, visible), visible);
}

constexpr auto forward = schedule::pass::forward;
constexpr auto keys_travel = schedule::pass::circulate_keys;
constexpr auto queries_travel = schedule::pass::circulate_queries;

}  // namespace

static_assert(proven(ring{}, 32, forward, below_diagonal{}));
static_assert(proven(ring{}, 16, keys_travel, relation::of(shards_before{2}, 16)));
static_assert(proven(my_ring{}, 8, keys_travel, below_diagonal{}));

TEST_CASE("contiguous shards under a causal mask: half of a ring's traffic") {
  CHECK(of(ring{}, 16, forward, below_diagonal{}) == costs{15, 30, 16, true});
  CHECK(of(ring{}, 16, keys_travel, below_diagonal{}) == costs{30, 58, 17, true});
  CHECK(of(ring{}, 16, queries_travel, below_diagonal{}) == costs{22.5, 43, 17, true});
  CHECK(of(ring{}, 64, forward, below_diagonal{}).average == 63);
  CHECK(of(double_ring<4>{}, 16, forward, below_diagonal{}) == costs{15, 24, 16, true});
  CHECK(of(double_ring<4>{}, 16, keys_travel, below_diagonal{}).average == 30);
  CHECK(of(concentric<4>{}, 16, forward, below_diagonal{}) == costs{8.25, 12, 6, true});
  CHECK(of(concentric<4>{}, 16, keys_travel, below_diagonal{}).average == 13.875);
  CHECK(of(concentric<8>{}, 64, forward, below_diagonal{}).average == 20.125);
  CHECK(of(concentric<8>{}, 64, keys_travel, below_diagonal{}).average == 33.6875);
  CHECK(of(wallfacer<2>{}, 16, forward, below_diagonal{}) == costs{9.875, 16, 7, true});
  CHECK(of(wallfacer<2>{}, 16, keys_travel, below_diagonal{}).average == 18.8125);
  CHECK(of(usp<4>{}, 16, forward, below_diagonal{}) == costs{6, 9, 6, true});
  CHECK(of(usp<4>{}, 16, keys_travel, below_diagonal{}).average == 11.25);
}

TEST_CASE("a window of two shards: what travels is what is seen") {
  CHECK(of(ring{}, 16, forward, shards_before{2}) == costs{3.625, 4, 3, true});
  CHECK(of(ring{}, 64, forward, shards_before{2}) == costs{3.90625, 4, 3, true});
  CHECK(of(ring{}, 64, keys_travel, shards_before{2}) == costs{7.8125, 8, 4, true});
  CHECK(of(ring{}, 64, queries_travel, shards_before{2}) == costs{5.859375, 6, 5, true});
  CHECK(of(all_gather{}, 64, forward, shards_before{2}) == costs{3.90625, 4, 2, true});
}

TEST_CASE("where nothing is superfluous, nothing changes") {
  for (const schedule::pass p : topologies::every_pass) {
    const auto half = orrery::detail::unallocated_programs(half_ring{}, 16, p);
    CHECK(prune(half, below_diagonal{}) == half);
  }
  for (const schedule::pass p : topologies::every_pass) {
    const auto stays = [&](const auto& t) {
      const auto all = orrery::detail::unallocated_programs(t, 16, p);
      INFO(name_of(t), ", ", std::string{name_of(p)});
      CHECK(prune(all, every_pair{}) == all);
    };
    stays(ring{});
    stays(all_gather{});
    stays(double_ring<4>{});
    stays(concentric<4>{});
    stays(concentric<2, 4>{});
    stays(ulysses{});
    stays(usp<4>{});
  }
  // Two transpositions, one inside the other, are one.
  const all_to_all<2, all_to_all<3, concentric<2>>> nested;
  CHECK(of(nested, 12, forward, every_pair{}).right);
  CHECK(of(nested, 12, forward, every_pair{}).average < traffic(nested, 12).sent);
}

TEST_CASE("without a visible pair there is nothing to do") {
  for (const topologies::entry& topology : topologies::all()) {
    if (!topology.admits(12, keys_travel)) continue;
    for (const program& p : prune(topology.programs(12, keys_travel), relation{12})) {
      CHECK(p.steps.empty());
      CHECK(p.exchanges.empty());
      CHECK(p.collectives.empty());
    }
  }
  CHECK(prune(list<program>{}, below_diagonal{}).empty());
}

/// A query sees its own shard, and the third before it.
struct own_and_third {
  constexpr bool operator()(int query, int key) const { return key == query || key == query - 3; }
};

TEST_CASE("steps in which no rank has anything left to do are dropped") {
  // The own tiles; the messages, past two ranks; the other tiles. The step before the messages is gone.
  const list<program> programs = pruned(ring{}, 8, forward, own_and_third{});
  CHECK(programs[3].steps.count == 3);
  CHECK(of(programs, own_and_third{}).right);
}

TEST_CASE("without shortcuts, blocks still pass through ranks that need none of them") {
  const auto unpruned = orrery::detail::unallocated_programs(ring{}, 64, keys_travel);
  const costs found = of(prune(unpruned, shards_before{2}, shortcuts::no), shards_before{2});
  CHECK(found.average > 64);
  const list<program> programs = finished(prune(unpruned, shards_before{2}, shortcuts::no));
  CHECK(verify(programs, shards_before{2}).ok());
}

namespace {

/// Rank 0's key goes to rank 1 in step 0, and from there, in step 1, to ranks 2 and 3.
struct forked {
  static constexpr orrery::program program(int rank, int world) {
    builder schedule{rank, world};
    schedule.interact(query(rank), key(rank));
    for (int step = 0; step < 2; ++step) {
      const auto message = [&](int from, int to) {
        schedule.begin_exchange(rank == from ? to : no_rank, rank == to ? from : no_rank);
        if (rank == from) schedule.send(key(0));
        if (rank == to) schedule.receive(key(0));
      };
      if (step == 0 && rank < 2) message(0, 1);
      if (step == 1 && (rank == 1 || rank == 2)) message(1, 2);
      if (step == 1 && (rank == 1 || rank == 3)) message(1, 3);
      schedule.next_step();
    }
    if (rank > 0) schedule.interact(query(rank), key(0));
    return schedule;
  }
};

}  // namespace

TEST_CASE("no rank sends more than before: what a rank sends to several stays on its way") {
  const auto all = orrery::detail::unallocated_programs(forked{}, 4, forward);
  const auto two = [](int q, int k) { return q == k || (k == 0 && q >= 2); };
  const auto one = [](int q, int k) { return q == k || (k == 0 && q == 2); };
  CHECK(prune(all, [](int q, int k) { return q == k || k == 0; }) == all);
  CHECK(traffic(finished(prune(all, two)), weights_of(forward)).ranks[0].blocks_sent[2] == 1);
  CHECK(traffic(finished(prune(all, two)), weights_of(forward)).ranks[1].blocks_sent[2] == 2);
  CHECK(of(prune(all, two), two).right);
  const list<program> direct = prune(all, one);
  CHECK(of(direct, one).right);
  CHECK(direct[1].exchanges.empty());
  REQUIRE(direct[0].exchanges.size() == 1);
  CHECK(direct[0].exchanges[0].to == 2);
}

namespace {

/// Rank 0 receives rank 1's key, reads it, sends it to rank 2, and receives it from there again, all in `lane`.
struct there_and_back {
  int lane = 0;

  constexpr orrery::program program(int rank, int world) const {
    builder schedule{rank, world};
    const auto message = [&](int from, int to) {
      if (rank == from || rank == to) {
        schedule.begin_exchange(rank == from ? to : no_rank, rank == to ? from : no_rank, {lane});
        rank == from ? schedule.send(key(1)) : schedule.receive(key(1));
      }
    };
    message(1, 0);
    schedule.next_step();
    if (rank == 0) schedule.interact(query(0), key(1));
    message(0, 2);
    schedule.next_step();
    message(2, 0);
    schedule.next_step();
    if (rank == 0) schedule.interact(query(0), key(1));
    return schedule;
  }
};

}  // namespace

TEST_CASE("a block that comes back to a rank does not go past all others") {
  const auto all = orrery::detail::unallocated_programs(there_and_back{}, 3, forward);
  CHECK(prune(all, [](int, int k) { return k == 1; }) == all);
}

namespace {

/// A ring in another lane.
struct ring_in_lane {
  int lane;

  constexpr orrery::program program(int rank, int world) const {
    builder schedule{rank, world};
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) schedule.shift(key(rank - hop), +1, {lane});
      schedule.interact(query(rank), key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};

}  // namespace

TEST_CASE("shortcuts take two lanes, where two are left") {
  const auto far = [](int q, int k) { return q == k || q == k + 3; };
  CHECK(of(ring_in_lane{13}, 8, forward, far) == costs{10.0 / 8, 2, 3, true});
  CHECK(of(ring_in_lane{14}, 8, forward, far) == costs{30.0 / 8, 6, 4, true});
  CHECK(of(ring_in_lane{15}, 8, forward, far) == costs{30.0 / 8, 6, 4, true});
}

TEST_CASE("several blocks that take one way are one message") {
  // Ranks 0, 1 and 2, 3 and so on share heads; a rank sends both shards of its group to another group.
  const auto far = [](int q, int k) { return q / 2 == k / 2 || q / 2 == k / 2 + 2; };
  const list<program> all = finished(pruned(usp<2>{}, 8, forward, far));
  CHECK(verify(all, far).ok());
  int shortcuts_found = 0;
  for (const exchange& x : all[0].exchanges) {
    if (x.lane == 0 || x.sent.count == 0) continue;
    CHECK(x.to == 4);
    CHECK(x.sent.count == 2);
    ++shortcuts_found;
  }
  CHECK(shortcuts_found == 1);
}

TEST_CASE("a collective of a group stays one only if the whole group has lost nothing") {
  // concentric<2>: rows of two ranks gather queries; the first row's are not needed by one of its ranks.
  const auto visible = [](int q, int k) { return q != 0 || k % 2 == 0; };
  const auto unpruned = orrery::detail::unallocated_programs(concentric<2>{}, 8, forward);
  const list<program> all = prune(unpruned, visible);
  CHECK(of(all, visible).right);
  const auto in_rows = [](const list<program>& programs, int rank) {
    int found = 0;
    for (const collective& c : programs[rank].collectives) found += c.rank_stride == 1 ? 1 : 0;
    return found;
  };
  for (int rank = 0; rank < 8; ++rank) {
    CAPTURE(rank);
    CHECK(in_rows(unpruned, rank) == 2);
    CHECK(in_rows(all, rank) == (rank < 2 ? 0 : 2));
  }
}

TEST_CASE("programs that are wrong are returned as they came, for the verifier") {
  const auto right = orrery::detail::unallocated_programs(ring{}, 4, keys_travel);
  const auto changed = [&](auto&& change) {
    list<program> all = right;
    change(all);
    CHECK(prune(all, below_diagonal{}) == all);
  };
  changed([](auto& all) { all[1].rank = 2; });
  changed([](auto& all) { all[1].world = 5; });
  changed([](auto& all) { all[1].slices = 2; });
  changed([](auto& all) { all[1].pass = forward; });
  changed([](auto& all) { all[2].exchanges[0].to = 2; });
  changed([](auto& all) { all[2].exchanges[0].to = 4; });
  changed([](auto& all) { all[2].exchanges[0].to = -3; });
  changed([](auto& all) { all[2].exchanges[0].from = 100; });
  changed([](auto& all) { all[2].exchanges[0].to = 1; });
  changed([](auto& all) { all[2].exchanges[0].lane = 16; });
  changed([](auto& all) { all[2].exchanges[0].lane = -1; });
  changed([](auto& all) { all[2].exchanges[0].lane = 1; });
  changed([](auto& all) { all[2].exchanges[0].complete_before = 0; });
  changed([](auto& all) { all[2].exchanges[0].complete_before = 100; });
  changed([](auto& all) { all[2].exchanges[0].posted = 1; });
  changed([](auto& all) { all[2].exchanges[0].tensor = 1; });
  changed([](auto& all) { all[2].exchanges[0].payload = payload::partial; });
  changed([](auto& all) { all[2].sent[0].shard = 1; });
  changed([](auto& all) { all[2].sent[0].shard = 4; });
  changed([](auto& all) { all[2].received[0].block.shard = -1; });
  changed([](auto& all) { all[2].received[0].block.slice = 1; });
  changed([](auto& all) { all[2].queries[0].block.slice = -1; });
  changed([](auto& all) { all[2].keys[0].block.side = side::query; });
  changed([](auto& all) { all[2].keys[0].block.shard = 7; });
  changed([](auto& all) { all[2].exchanges[0].received.count = 0; });
  changed([](auto& all) { all[2].exchanges[0].sent.count = 0; });
  changed([](auto& all) { all[2].steps[1].exchanges.first = 0; });
  changed([](auto& all) { all[2].steps.pop_back(); });
}

TEST_CASE("a pruned ring, of which rank 0 has nothing to compute") {
  const causal mask{-30};
  const attention_shape shape{.length = 80, .query_heads = 4, .key_heads = 2, .head_dim = 4};
  const relation visible = planned::relation_of(mask, contiguous{}, 4, 80, 80);
  std::uint64_t seed = 0;
  for (const schedule::pass p : {keys_travel, queries_travel}) {
    CHECK(planned::failures<flash<double>>(finished(pruned(ring{}, 4, forward, visible)),
                                           finished(pruned(ring{}, 4, p, visible)), shape, mask, contiguous{},
                                           ++seed) == "");
  }
}

TEST_CASE("a rank that receives nothing but empty shards still knows them from its own") {
  // One key, which is the last rank's; that one receives the others' and sends nothing.
  const attention_shape shape{.length = 8, .query_heads = 2, .head_dim = 4, .key_length = 1};
  const relation visible = relation::of(below_diagonal{}, 4);
  CHECK(planned::failures<flash<double>>(finished(pruned(ring{}, 4, forward, visible)),
                                         finished(pruned(ring{}, 4, keys_travel, visible)), shape,
                                         planned::shard_mask{visible, 8, 1}, contiguous{}) == "");
}

}  // namespace prune_test
