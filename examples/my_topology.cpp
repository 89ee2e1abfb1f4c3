// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// A schedule of one's own: written in fifteen lines, proven by the compiler, drawn, counted and run.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <vector>

#include <orrery/orrery.hpp>

/// Keys travel both ways around the ring at once: half as many steps, and links are used in both directions.
struct two_way_ring {
  static std::string name() { return "two_way_ring"; }

  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    const int forth = world / 2, back = (world - 1) / 2;  // how many hops each way
    for (int hop = 0; hop <= forth; ++hop) {
      if (hop < forth) schedule.shift(orrery::key(rank - hop), +1, {.lane = 0});
      if (hop < back) schedule.shift(orrery::key(rank + hop), -1, {.lane = 1});
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      if (hop > 0 && hop <= back) schedule.add_to_tile(orrery::key(rank + hop));
      schedule.next_step();
    }
    return schedule;
  }
};

static_assert(orrery::verify(two_way_ring{}, 8));
static_assert(orrery::verify(two_way_ring{}, 7,
                             orrery::pass::circulate_keys));  // its backward follows from its forward

/// The same with one hop too few. `static_assert(orrery::verify(forgetful_ring{}, 8))` would stop the compiler with the
/// pair that is missing; at run time a verdict prints as a message.
struct forgetful_ring {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int hop = 0; hop + 1 < world; ++hop) {
      schedule.shift(orrery::key(rank - hop), +1);
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};

int main() {
  std::cout << orrery::draw_grid(two_way_ring{}, 5) << '\n';
  std::cout << "two_way_ring over 1000 ranks: " << orrery::verify(two_way_ring{}, 1000) << '\n';
  std::cout << "forgetful_ring over 8 ranks: " << orrery::verify(forgetful_ring{}, 8) << "\n\n";

  const auto compare = [](const auto& topology) {
    const auto forward = orrery::traffic(topology, 8);
    const auto backward = orrery::traffic(topology, 8, orrery::pass::circulate_keys);
    std::cout << orrery::name_of(topology) << " over 8 ranks sends " << forward.sent << " shard units in "
              << forward.steps << " steps forward, " << backward.sent << " in " << backward.steps << " backward, with "
              << forward.peak_slots << " and " << backward.peak_slots << " block slots\n";
  };
  compare(orrery::ring{});
  compare(two_way_ring{});

  // Run it over five ranks, and once more over one: the outputs of the first token must agree.
  const auto first_output = [](int ranks, auto topology) {
    double found = 0;
    orrery::threads::run(ranks, [&](auto& world) {
      orrery::attention<decltype(topology), orrery::flash<double>> attend{world, {.length = 99, .head_dim = 16}};
      const std::int64_t tokens = attend.query_positions().size();
      std::vector<double> x(static_cast<std::size_t>(tokens * 16)), out(x.size()),
          lse(static_cast<std::size_t>(tokens));
      for (std::int64_t i = 0; i < tokens * 16; ++i) {
        x[static_cast<std::size_t>(i)] = std::sin(static_cast<double>(attend.query_positions()[i / 16] * 16 + i % 16));
      }
      const auto view = orrery::batch_sequence_head_dim(x.data(), 1, tokens, 1, 16);
      attend.forward(view, view, view, orrery::batch_sequence_head_dim(out.data(), 1, tokens, 1, 16),
                     orrery::batch_head_sequence(lse.data(), 1, 1, tokens));
      if (world.rank() == 0) found = out[0];
    });
    return found;
  };
  const double alone = first_output(1, orrery::ring{});
  const double together = first_output(5, two_way_ring{});
  std::cout << "\nfirst output: " << alone << " on one rank, " << together << " on five\n";
  return std::abs(alone - together) < 1e-12 ? 0 : 1;
}
