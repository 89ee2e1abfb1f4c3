// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/tune/causal_grid.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/verify/verify.hpp"

#include "support/conformance.hpp"

using orrery::below_diagonal;
using orrery::causal_grid;
using orrery::pass;
using orrery::traffic_report;

namespace {

constexpr pass every_pass[] = {pass::forward, pass::circulate_keys, pass::circulate_queries};

/// FNV-1a, of which rank has which pair.
std::uint64_t digest(const orrery::detail::triangle& pairs) {
  std::uint64_t sum = 14695981039346656037U;
  for (const int rank : pairs.rank_of) sum = (sum ^ static_cast<std::uint64_t>(rank)) * 1099511628211U;
  return sum;
}

/// The pairs that each rank has, a pair on the diagonal half.
std::vector<double> work(const orrery::detail::triangle& pairs) {
  std::vector<double> of(static_cast<std::size_t>(pairs.world));
  for (int q = 0; q < pairs.world; ++q) {
    for (int k = 0; k <= q; ++k)
      of[static_cast<std::size_t>(pairs.rank_of[orrery::detail::triangle::at(q, k)])] += q == k ? 0.5 : 1;
  }
  return of;
}

traffic_report measure(int world, pass p = pass::forward) { return orrery::traffic(causal_grid{}, world, p); }

}  // namespace

TEST_CASE("the causal grid sends less than a concentric one, on average and where most is sent or received") {
  const traffic_report of_8 = measure(8);
  CHECK(of_8.total / 8 == 5.25);
  CHECK(of_8.sent == 6);
  CHECK(of_8.received == 6);
  CHECK(orrery::traffic(orrery::concentric<2>{}, 8).sent == 8);
  const traffic_report of_16 = measure(16);
  CHECK(of_16.total / 16 == 9.375);
  CHECK(of_16.sent == 11);
  CHECK(of_16.received == 10);
  CHECK(orrery::traffic(orrery::concentric<4>{}, 16).sent == 12);
  CHECK(orrery::traffic(causal_grid{}, 16, pass::forward, 1, 2).sent == 14);
  for (const pass p : {pass::circulate_keys, pass::circulate_queries}) {
    CHECK(measure(16, p).total / 16 == 16.3125);
    CHECK(measure(16, p).sent == 20);
    CHECK(orrery::traffic(causal_grid{}, 16, p, 1, 2).total / 16 == 23.25);
    CHECK(orrery::traffic(causal_grid{}, 16, p, 1, 2).sent == 28);
  }
  const traffic_report of_12 = measure(12);  // of which the first beginning of the search finds 94 and 10
  CHECK(of_12.total == 86);
  CHECK(of_12.sent == 8);
  // Squares: 14 for 28 ranks, 28 for 4, less what diagonal ranks own.
  const traffic_report of_32 = measure(32);
  CHECK(of_32.total / 32 < 16);
  CHECK(of_32.sent <= 17);
  CHECK(orrery::traffic(orrery::concentric<4>{}, 32).sent == 20);
  CHECK(measure(50).total / 50 < 20);
}

TEST_CASE("it is proven for the pairs below the diagonal, forward and backward") {
  for (const int world : {1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 24, 29, 32}) {
    for (const pass p : every_pass) {
      CAPTURE(world);
      const orrery::verdict found = orrery::verify(causal_grid{}, world, p, below_diagonal{});
      INFO(found.message());
      CHECK(found.ok());
    }
  }
  // Other pairs are not computed, unless it is concentric.
  CHECK(orrery::verify(causal_grid{}, 8).found == orrery::fault::pair_missing);
  CHECK(orrery::verify(causal_grid{}, 32).found == orrery::fault::pair_missing);
  CHECK(orrery::verify(causal_grid{}, 24));
}

TEST_CASE("all ranks compute as much, up to half a pair") {
  for (const int world : {1, 2, 3, 6, 8, 13, 16}) {
    CAPTURE(world);
    for (const double pairs : work(orrery::detail::triangle_search{world}.run())) {
      CHECK(pairs >= (world - 1) / 2.0);
      CHECK(pairs <= (world + 1) / 2.0);
    }
  }
  for (const int m : {2, 4, 8, 12}) {
    for (const double pairs : work(orrery::detail::triangle::of_squares(m))) CHECK(pairs == m * m / 4.0);
  }
}

TEST_CASE("every rank, compiler and machine finds the same") {
  CHECK(digest(orrery::detail::triangle_search{8}.run()) == digest(orrery::detail::triangle_search{8}.run()));
  CHECK(digest(orrery::detail::triangle_search{8}.run()) == 1130807528477445014U);
  CHECK(digest(orrery::detail::triangle_search{16}.run()) == 2873515802989280383U);
  for (int rank = 0; rank < 8; ++rank)
    CHECK(
        (causal_grid::program(rank, 8, pass::circulate_keys) == causal_grid::programs(8, pass::circulate_keys)[rank]));
}

TEST_CASE("it says how the schedule of a world is made") {
  CHECK(causal_grid::method(16) == "search");
  CHECK(causal_grid::method(20) == "search");
  CHECK(causal_grid::method(32) == "squares of 8 pieces");
  CHECK(causal_grid::method(24) ==
        "concentric<4,1>, for all pairs: pairs below the diagonal are searched for up to 20 ranks, and laid out in "
        "squares for m * m / 2 ranks, m even; 24 is neither");
  CHECK(causal_grid::method(23).find("concentric<1,1>") == 0);
  CHECK((orrery::program_of(causal_grid{}, 3, 24) == orrery::program_of(orrery::concentric<4>{}, 3, 24)));
}

TEST_CASE("causal attention over a causal grid") {
  const auto on_threads = [](int ranks, auto&& body) { orrery::threads::run(ranks, body); };
  std::uint64_t seed = 0;
  for (const int world : {1, 2, 3, 5, 8}) {
    for (const pass circulate : {pass::circulate_keys, pass::circulate_queries}) {
      for (const std::int64_t offset : {0, -30}) {
        CAPTURE(world);
        CAPTURE(offset);
        const orrery::attention_shape shape{
            .length = 83, .query_heads = 4, .key_heads = 2, .head_dim = 8, .value_dim = 4, .circulate = circulate};
        CHECK(conformance::failures<causal_grid, orrery::flash<double>, orrery::threads::world>(
                  on_threads, world, shape, orrery::causal{offset}, orrery::contiguous{}, ++seed, causal_grid{}) == "");
      }
    }
  }
}

TEST_CASE("a mask that needs other pairs is refused") {
  CHECK_THROWS_AS(orrery::threads::run(4,
                                       [](auto& on) {
                                         const orrery::attention<causal_grid, orrery::flash<float>> attend{
                                             on, {.length = 16, .head_dim = 4}, orrery::full{}};
                                       }),
                  std::invalid_argument);
}

TEST_CASE("pairs that it leaves out are told with what would do") {
  CHECK(
      orrery::verify(orrery::causal_grid{}, 4).message().find("use it with a causal mask and the layout contiguous") !=
      std::string::npos);
}
