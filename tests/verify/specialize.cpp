// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/verify/detail/specialize.hpp"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/predict/traffic.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/verify/verify.hpp"

#include "support/topologies.hpp"
#include "verify/every_topology.hpp"

namespace specialize_test {

using namespace orrery::detail;
using orrery::below_diagonal;
using orrery::fault;
using orrery::half_ring;
using orrery::ring;
using orrery::schedule::relation;

namespace {

constexpr auto forward = orrery::pass::forward;

bool causal(int query, int key) { return key <= query; }

}  // namespace

TEST_CASE("a specialized schedule is pruned, finished, proven and has a digest") {
  const relation visible = relation::of(causal, 12);
  for (const topologies::entry& topology : topologies::all()) {
    for (const orrery::pass p : topologies::every_pass) {
      if (!topology.admits(12, p)) continue;
      CAPTURE(topology.name);
      const specialized_schedule made = specialize(topology.programs(12, p), visible);
      CHECK(made.outcome == specialization::pruned);
      CHECK(made.found.ok());
      CHECK(orrery::verify(made.programs, visible).ok());
      CHECK(made.digest == specialize(topology.programs(12, p), visible).digest);
    }
  }
  const specialized_schedule made = specialize(ring{}, 12, forward, visible);
  CHECK(made.programs == specialize(orrery::programs_of(ring{}, 12), visible).programs);
  CHECK(orrery::traffic(made.programs, orrery::weights_of(forward)).ranks[0].sent == 2);
  CHECK(made.block_names == 12 * (11 + 11 + 12 + 12));
  CHECK_FALSE(made.digest == specialize(ring{}, 12, forward, relation::of(orrery::every_pair{}, 12)).digest);
}

TEST_CASE("a topology that computes less than is asked for is refused in its own terms") {
  const relation all = relation::of(orrery::every_pair{}, 8);
  const specialized_schedule made = specialize(half_ring{}, 8, forward, all);
  CHECK(made.outcome == specialization::unchanged);
  CHECK(made.found.message() == orrery::verify(half_ring{}, 8).message());
  CHECK(specialize(half_ring{}, 8, forward, relation::of(causal, 8)).found.ok());
}

namespace {

/// Rank 2 gets the key of rank 0 by way of rank 1, which does not read it, and is `late` steps behind it.
struct skewed {
  int late;

  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    const auto message = [&](int from, int to) {
      if (rank != from && rank != to) return;
      schedule.begin_exchange(rank == from ? to : orrery::schedule::no_rank,
                              rank == to ? from : orrery::schedule::no_rank);
      rank == from ? schedule.send(orrery::key(3)) : schedule.receive(orrery::key(3));
    };
    if (rank == 0) {
      for (int step = 0; step < late; ++step) schedule.next_step();
    }
    message(3, 0);
    schedule.next_step();
    if (rank == 0) schedule.interact(orrery::query(0), orrery::key(3));
    message(0, 1);
    schedule.next_step();
    if (rank == 1) {
      message(1, 2);
      schedule.next_step();
    }
    if (rank == 2) {
      message(1, 2);
      schedule.next_step();
      schedule.interact(orrery::query(2), orrery::key(3));
    }
    return schedule;
  }
};

}  // namespace

TEST_CASE("what cannot be proven with shortcuts is pruned without") {
  const relation visible = relation::of([](int query, int key) { return key == 3 && (query == 0 || query == 2); }, 4);
  for (const int late : {0, 9}) {
    CAPTURE(late);
    const auto unpruned = unallocated_programs(skewed{late}, 4, forward);
    const bool with_shortcuts = [&] {
      auto all = prune(unpruned, visible);
      for (orrery::program& p : all) finish(p);
      return orrery::verify(all, visible).ok();
    }();
    CHECK(with_shortcuts == (late == 0));
    const specialized_schedule made = specialize(skewed{late}, 4, forward, visible);
    CHECK(made.found.ok());
    CHECK(made.outcome == specialization::pruned);
    CHECK(made.programs[1].exchanges.empty() == with_shortcuts);
  }
}

TEST_CASE("with too many blocks a schedule is proven for every pair, and not pruned") {
  const relation visible = relation::of(causal, 12);
  const std::int64_t names = 12 * (11 + 11 + 12 + 12);
  CHECK(specialize(ring{}, 12, forward, visible, names).outcome == specialization::pruned);
  const specialized_schedule made = specialize(ring{}, 12, forward, visible, names / 2);
  CHECK(made.outcome == specialization::too_many);
  CHECK(made.programs.empty());
  CHECK(made.found.ok());
  CHECK(made.digest == prove_once(ring{}, 12).digest);
  CHECK(made.block_names < names);  // no more ranks were written
  const auto derived = specialize(my_ring{}, 12, orrery::pass::circulate_keys, visible, names / 2);
  CHECK(derived.outcome == specialization::too_many);
  CHECK(derived.found.ok());
  CHECK(specialize(half_ring{}, 12, forward, visible, 10).found.found == fault::pair_missing);
}

namespace {

struct program_of_rank_0 {
  static constexpr orrery::program program(int, int world) { return my_ring{}.program(0, world); }
};
/// A ring that counts the programs that it writes.
struct counting {
  static inline std::atomic<int> written = 0;
  static orrery::program program(int rank, int world) {
    ++written;
    return my_ring{}.program(rank, world);
  }
};
struct without_equality : counting {
  int number = 0;
};

}  // namespace

TEST_CASE("refused worlds, programs of other ranks and relations of other worlds are named") {
  CHECK(specialize(orrery::wallfacer<2>{}, 6, forward, relation{6}).found.found == fault::world_refused);
  CHECK(specialize(ring{}, 0, forward, relation{0}).found.found == fault::world_refused);
  const orrery::verdict other = specialize(program_of_rank_0{}, 4, forward, relation{4}).found;
  CHECK(other.found == fault::program_of_another);
  CHECK(other.rank == 1);
  CHECK(specialize(ring{}, 4, forward, relation{5}).found.message().find("pairs of another world") !=
        std::string::npos);
}

TEST_CASE("a schedule is specialized once for a topology's value, world, pass and relation") {
  counting::written = 0;
  const relation visible = relation::of(causal, 6);
  const auto first = specialize_once(counting{}, 6, forward, visible);
  CHECK(counting::written == 6);
  std::vector<std::thread> ranks;
  std::vector<std::shared_ptr<const specialized_schedule>> found(6);
  for (std::size_t rank = 0; rank < 6; ++rank)
    ranks.emplace_back([&, rank] { found[rank] = specialize_once(counting{}, 6, forward, visible); });
  for (std::thread& rank : ranks) rank.join();
  for (const auto& one : found) CHECK(one == first);
  CHECK(counting::written == 6);
  CHECK(specialize_once(counting{}, 6, forward, relation{6}) != first);
  CHECK(specialize_once(counting{}, 6, orrery::pass::circulate_keys, visible) != first);
  CHECK(specialize_once(counting{}, 6, forward, visible) == first);
  CHECK(specialize_once(half_ring{}, 3, forward, relation::of(orrery::every_pair{}, 3)) !=
        specialize_once(half_ring{}, 3, forward, relation::of(orrery::every_pair{}, 3)));  // refused: not kept
  CHECK(specialize_once(without_equality{}, 6, forward, visible) !=
        specialize_once(without_equality{}, 6, forward, visible));
}

TEST_CASE("the oldest of many schedules is forgotten, whoever holds it keeps it") {
  const auto with_one_pair = [](int key) {
    relation visible{20};
    visible.set(0, key);
    return visible;
  };
  const auto first = specialize_once(ring{}, 20, forward, with_one_pair(0));
  const auto second = specialize_once(ring{}, 20, forward, with_one_pair(1));
  for (int key = 2; key < 17; ++key) static_cast<void>(specialize_once(ring{}, 20, forward, with_one_pair(key)));
  CHECK(specialize_once(ring{}, 20, forward, with_one_pair(1)) == second);
  CHECK(specialize_once(ring{}, 20, forward, with_one_pair(0)) != first);
  CHECK(first->programs.size() == 20);
}

}  // namespace specialize_test
