// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/schedule/derive_backward.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/draw/grid.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/detail/slot_allocation.hpp"
#include "orrery/schedule/detail/symmetry.hpp"
#include "orrery/schedule/refine.hpp"
#include "orrery/schedule/relabel.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/verify/verify.hpp"

#include "support/finished.hpp"
#include "verify/every_topology.hpp"

namespace derive_backward_test {

using namespace orrery;
using namespace orrery::schedule;

namespace {

constexpr pass backwards[] = {pass::circulate_keys, pass::circulate_queries};

/// A forward of somebody's own: each key shard spreads over the ranks by hops between random ranks, of random length,
/// and each rank meets what it has in a random step, several shards at a time. Ranks may share slices of the heads.
class random_forward {
 public:
  random_forward(unsigned seed, int world)
      : random_{seed}, world_{world}, slices_{1 + below(2)}, late_(static_cast<std::size_t>(world)) {
    // Sometimes some ranks are late: with idle steps in between.
    if (below(2) == 0) {
      for (int& steps : late_) steps = below(3);
    }
    write();
  }

  [[nodiscard]] list<program> programs() const { return programs_; }

 private:
  [[nodiscard]] int below(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }

  struct hop {
    int from, to, posted, flight;
    std::vector<block> blocks;
  };

  void write() {
    const int blocks = world_ * slices_;
    constexpr int never = 1 << 20;
    // At [rank][block]: from when on it can be used, and whether it has met the rank's query.
    std::vector<std::vector<int>> usable(static_cast<std::size_t>(world_),
                                         std::vector<int>(static_cast<std::size_t>(blocks), never));
    std::vector<std::vector<bool>> met(static_cast<std::size_t>(world_),
                                       std::vector<bool>(static_cast<std::size_t>(blocks)));
    std::vector<hop> hops;
    std::vector<std::vector<std::vector<int>>> tiles(static_cast<std::size_t>(world_));
    for (int b = 0; b < blocks; ++b) usable[static_cast<std::size_t>(b / slices_)][static_cast<std::size_t>(b)] = 0;
    const auto block_of = [&](int b) { return block{side::key, 0, b / slices_, b % slices_}; };
    for (int step = 0, left = world_ * blocks; left > 0; ++step) {
      for (int b = 0; b < blocks; ++b) {
        for (int tries = below(3); tries > 0; --tries) {
          const int from = below(world_), to = below(world_);
          int& arrives = usable[static_cast<std::size_t>(to)][static_cast<std::size_t>(b)];
          if (arrives != never || usable[static_cast<std::size_t>(from)][static_cast<std::size_t>(b)] > step) continue;
          const int flight = below(4) == 0 ? 1 + below(3) : 1;
          arrives = step + flight;
          hop* same = nullptr;
          for (hop& other : hops) {
            if (other.from == from && other.to == to && other.posted == step && other.flight == flight) same = &other;
          }
          if (same == nullptr) same = &hops.emplace_back(hop{from, to, step, flight, {}});
          same->blocks.push_back(block_of(b));
        }
      }
      for (int rank = 0; rank < world_; ++rank) {
        const auto r = static_cast<std::size_t>(rank);
        std::vector<int>& tile = tiles[r].emplace_back();
        const int slice = below(slices_);
        for (int b = slice; b < blocks; b += slices_) {
          if (met[r][static_cast<std::size_t>(b)] || usable[r][static_cast<std::size_t>(b)] > step || below(3) == 0)
            continue;
          met[r][static_cast<std::size_t>(b)] = true;
          tile.push_back(b);
          --left;
        }
      }
    }
    for (int rank = 0; rank < world_; ++rank) {
      const auto r = static_cast<std::size_t>(rank);
      // Step i of a late rank is its step i * (1 + late).
      const int pace = 1 + late_[r];
      builder schedule{rank, world_, pass::forward, slices_};
      for (int step = 0; step < static_cast<int>(tiles[r].size()); ++step) {
        for (const hop& one : hops) {
          if (one.posted != step || (one.from != rank && one.to != rank)) continue;
          const in_flight flight{one.flight - 1, one.flight * pace};
          schedule.begin_exchange(one.from == rank ? one.to : no_rank, one.to == rank ? one.from : no_rank, flight);
          for (const block& b : one.blocks) one.from == rank ? schedule.send(b) : schedule.receive(b);
        }
        for (std::size_t i = 0; i < tiles[r][static_cast<std::size_t>(step)].size(); ++i) {
          const block b = block_of(tiles[r][static_cast<std::size_t>(step)][i]);
          if (i == 0) schedule.add_to_tile(block{side::query, 0, rank, b.slice});
          schedule.add_to_tile(b);
        }
        for (int idle = 0; idle < pace; ++idle) schedule.next_step();
      }
      programs_.push_back(schedule);
    }
  }

  std::mt19937 random_;
  int world_;
  int slices_;
  std::vector<int> late_;
  list<program> programs_;
};

/// Between which ranks operands, or partials, of one side travel, in this direction.
std::set<std::pair<int, int>> links(const list<program>& all, payload c, side s) {
  std::set<std::pair<int, int>> found;
  for (const program& p : all) {
    for (const exchange& x : p.exchanges) {
      for (const block& b : p.sent_by(x)) {
        if (x.payload == c && b.side == s) found.emplace(p.rank, x.to);
      }
    }
  }
  return found;
}

/// What holds for every derived backward, of a forward in which only keys travel.
void check_derived(const list<program>& forward, pass p) {
  const list<program> backward = finished(derive_backward(forward, p));
  const verdict found = verify(backward);
  INFO(found.message());
  if (!found.ok()) INFO(draw_grid(backward));
  REQUIRE(found.ok());
  const side travelling = travelling_side(p);
  const auto came = links(backward, payload::operand, travelling);
  std::int64_t met = 0;
  for (const program& mine : forward) {
    std::set<std::tuple<int, int, int>> foreign;
    for (const held_block& k : mine.keys) {
      if (k.block.shard != mine.rank) foreign.emplace(k.block.shard, k.block.slice, k.block.chunk);
    }
    met += static_cast<std::int64_t>(foreign.size());
  }
  std::int64_t sent = 0;
  for (const program& mine : backward) {
    CHECK((mine.pass == p));
    for (const exchange& x : mine.exchanges) {
      if (x.payload != payload::partial) continue;
      for (const block& b : mine.sent_by(x)) {
        REQUIRE((b.side == travelling));
        ++sent;
        const bool along = came.count({mine.rank, x.to}) + came.count({x.to, mine.rank}) > 0;
        if (!along) CHECK(along);
      }
    }
  }
  // Once from each rank that has met the shard; and from ranks on the way, which pass on what they were sent.
  CHECK(sent >= met);
  std::int64_t received = 0;
  for (const program& mine : forward) {
    for (const exchange& x : mine.exchanges) received += mine.received_by(x).size();
  }
  CHECK(sent <= received);
}

}  // namespace

TEST_CASE("a derived backward keeps the locality of its forward") {
  const auto egress = [](auto topology, pass p) { return traffic(topology, 16, p).node_egress(4); };
  CHECK(egress(topologies::my_ring{}, pass::circulate_keys) == 60);
  CHECK(egress(topologies::my_ring{}, pass::circulate_queries) == 45);
  CHECK(egress(topologies::my_three_rings<2, 2>{}, pass::forward) == 24);
  CHECK(egress(topologies::my_three_rings<2, 2>{}, pass::circulate_keys) == 48);
  CHECK(egress(topologies::my_three_rings<2, 2>{}, pass::circulate_queries) == 36);
  // As the backwards that the library's rings write themselves.
  for (const pass p : backwards) {
    CHECK(egress(topologies::my_ring{}, p) == egress(ring{}, p));
    CHECK(egress(topologies::my_three_rings<2, 2>{}, p) == egress(double_ring<4>{}, p));
    for (const int world : {2, 3, 8, 16}) {
      const traffic_report own = traffic(ring{}, world, p);
      const traffic_report derived = traffic(topologies::my_ring{}, world, p);
      CHECK(derived.sent == own.sent);
      CHECK(derived.total == own.total);
      CHECK(derived.messages_sent == own.messages_sent);
      CHECK(derived.steps == own.steps);
      CHECK(derived.peak_slots == own.peak_slots);
    }
  }
}

TEST_CASE("a derived backward adds a hop for each ring, not a second turn") {
  for (const pass p : backwards) {
    CHECK(traffic(topologies::my_ring{}, 64, p).steps == 64 + 1);
    CHECK(traffic(topologies::my_three_rings<2, 2>{}, 64, p).steps == 64 + 3);
    CHECK(traffic(topologies::my_three_rings<4, 4>{}, 64, p).steps == 64 + 3);
    CHECK(traffic(topologies::my_three_rings<4, 4>{}, 64, p).peak_slots <= 15);
  }
}

TEST_CASE("a gradient that takes long to its owner is in flight as long as the keys were, behind tiles") {
  int longest = 0;
  for (const program& mine : programs_of(topologies::my_three_rings<2, 2>{}, 16, pass::circulate_keys)) {
    for (const exchange& x : mine.exchanges) {
      if (x.payload == payload::partial) longest = std::max(longest, x.complete_before - x.posted);
    }
  }
  CHECK(longest == 4);
}

TEST_CASE("the backward of any proven forward is proven, and its partials take the operands' links") {
  for (unsigned seed = 1; seed <= 400; ++seed) {
    const int world = 1 + static_cast<int>(seed % 9);
    CAPTURE(seed);
    CAPTURE(world);
    const list<program> forward = random_forward{seed, world}.programs();
    const verdict found = verify(finished(forward));
    INFO(found.message());
    REQUIRE(found.ok());
    for (const pass p : backwards) {
      check_derived(forward, p);
      if (seed % 4 == 0) check_derived(refine(forward, 3), p);
    }
  }
}

TEST_CASE("both backwards are derived from the forward of every topology, in every order of the ranks") {
  std::mt19937 random{1};
  for (const topologies::entry& topology : topologies::all()) {
    for (const int world : {1, 2, 4, 6, 9, 12, 16}) {
      if (!topology.admits(world, pass::forward)) continue;
      const list<program> forward = topology.programs(world, pass::forward);
      list<int> to(world);
      for (int rank = 0; rank < world; ++rank) to[rank] = rank;
      for (int order = 0; order < 2; ++order) {
        CAPTURE(topology.name);
        CAPTURE(world);
        for (const pass p : backwards) {
          const list<program> backward = finished(derive_backward(relabel(forward, to), p));
          const verdict found = verify(backward);
          INFO(found.message());
          CHECK(found.ok());
          const traffic_report costs = traffic(backward, weights_of(p));
          const double forward_total = traffic(forward, weights_of(pass::forward)).total;
          // Q is 2 with dO, K and V are 2, dQ is 1; and each block of keys that has arrived goes home once at most.
          CHECK(costs.total <= 3 * forward_total);
        }
        std::shuffle(to.begin(), to.end(), random);
      }
    }
  }
}

TEST_CASE("a forward of the pairs below the diagonal is not turned round") {
  struct forward_of_half_ring {
    [[nodiscard]] constexpr orrery::program program(int rank, int world) const {
      return half_ring{}.program(rank, world, pass::forward);
    }
  };
  for (const int world : {1, 2, 5, 8, 16}) {
    for (const pass p : backwards) CHECK(verify(forward_of_half_ring{}, world, p, below_diagonal{}));
  }
}

TEST_CASE("a rank's program is the one among all, and a rotation of those of its period") {
  for (const int world : {1, 4, 12, 16}) {
    for (const pass p : backwards) {
      const topologies::my_three_rings<2, 2> topology;
      if (world % 4 != 0) continue;
      const list<program> all = detail::unallocated_programs(topology, world, p);
      const derived_backward derived = detail::derived_pass(topology, world, p);
      const int period = derived.period.size();
      CHECK(4 % period == 0);
      for (int rank = 0; rank < world; ++rank) {
        CHECK((detail::unallocated_program(topology, rank, world, p) == all[rank]));
        CHECK(is_rotation(all[rank % period], all[rank], rank - rank % period));
      }
      CHECK(verify(topology, world, p));
    }
  }
}

TEST_CASE("what is wrong with a forward is wrong with its backward, and named") {
  // A forward that receives a block from where it has not been, one whose message nobody sends, and one that waits
  // forever: each is derived, and refused.
  const auto forward = [](auto change) {
    list<program> all;
    for (int rank = 0; rank < 3; ++rank) {
      builder schedule{rank, 3};
      change(schedule, rank);
      schedule.interact(query(rank), keys(0, 3));
      all.push_back(schedule);
    }
    return all;
  };
  const auto check = [](const list<program>& all) {
    for (const pass p : backwards) CHECK_FALSE(verify(finished(derive_backward(all, p))).ok());
  };
  check(forward([](builder&, int) {}));
  check(forward([](builder& schedule, int rank) {
    schedule.shift(key(rank - 1), +1);  // which the sender does not have
    schedule.shift(key(rank), +1);
    schedule.next_step();
  }));
  check(forward([](builder& schedule, int rank) {
    for (const int from : {1, 2}) {
      schedule.begin_exchange(no_rank, (rank + from) % 3);
      schedule.receive(key(rank + from));
    }
    schedule.next_step();
  }));
  check(forward([](builder& schedule, int rank) {
    for (const int hop : {1, 2}) {  // everyone receives first
      schedule.begin_exchange(no_rank, (rank + hop) % 3);
      schedule.receive(key(rank + hop));
      schedule.next_step();
      schedule.begin_exchange((rank + 3 - hop) % 3, no_rank);
      schedule.send(key(rank));
      schedule.next_step();
    }
  }));
}

}  // namespace derive_backward_test
