// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// Ranks in different collective calls, for every transport: all of them are told, at once, who calls what.

#include <cstddef>
#include <exception>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/schedule/builder.hpp"
#include "orrery/schedule/detail/slot_allocation.hpp"
#include "orrery/transport/traced.hpp"
#include "orrery/transport/transport.hpp"

namespace collectives {

/// A collective call, as a rank makes it.
struct call {
  const char* name;  // as messages say it
  bool sums = false;
};
inline constexpr call all[] = {{"calls barrier"},
                               {"calls all_gather"},
                               {"calls all_reduce_sum of 4 values of float", true},
                               {"calls all_reduce_sum of 2 values of double", true},
                               {"calls all_reduce_sum of 4 values of double", true},
                               {"calls require_agreement, as the construction of an operator does"},
                               {"calls open, as the construction of an operator does"},
                               {"calls traced, for its clock or timeline"}};

/// `construct(on)` begins with `require_agreement`.
template <class World, class Construct>
void make(World& on, std::size_t which, const Construct& construct) {
  std::vector<float> floats(4, 1);
  std::vector<double> doubles(4, 1);
  if (which == 0) on.barrier();
  if (which == 1) static_cast<void>(on.all_gather("hello"));
  if (which == 2) on.all_reduce_sum(std::span{floats});
  if (which == 3) on.all_reduce_sum(std::span{doubles}.first(2));
  if (which == 4) on.all_reduce_sum(std::span{doubles});
  if (which == 5) construct(on);
  if (which == 6) {
    orrery::program idle = orrery::builder{on.rank(), on.size()};
    orrery::schedule::finish(idle);
    static_cast<void>(on.open(idle, {}));
  }
  if (which == 7) const orrery::traced<World> recorder{on};
}

/// Rank `odd` makes another call than the others. Then all call a barrier: which works where only the arguments of one
/// call differed, and else throws the same again. `run(body)` calls body(world, construct) on all ranks.
template <class Run>
void check(int ranks, int odd, std::size_t others, std::size_t other, const Run& run) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks), "nothing");
  std::vector<std::string> went_on = said;
  const bool keeps = all[others].sums && all[other].sums;
  const auto on_rank = [&](auto& on, const auto& construct) {
    const auto rank = static_cast<std::size_t>(on.rank());
    try {
      make(on, on.rank() == odd ? other : others, construct);
    } catch (const std::invalid_argument& e) {
      said[rank] = keeps ? e.what() : "an argument is wrong";
    } catch (const orrery::transport_error& e) {
      said[rank] = keeps ? "the world is lost" : e.what();
    }
    try {
      on.barrier();
      went_on[rank] = "barrier";
    } catch (const orrery::transport_error& e) {
      went_on[rank] = e.what();
    }
  };
  std::string thrown;
  try {
    run(on_rank);
  } catch (const std::exception& e) {
    thrown = e.what();
  }
  const std::string name = "rank " + std::to_string(odd) + " " + all[other].name;
  std::string of_others = all[others].name;
  if (ranks > 2) of_others.replace(0, 5, "call");
  INFO(ranks, " ranks; ", name, ", the others ", of_others);
  CHECK(thrown == "");
  for (std::size_t rank = 0; rank < said.size(); ++rank) {
    INFO("said: ", said[rank]);
    CHECK(said[rank].find("orrery: ") == 0);
    CHECK(said[rank].find(name) != std::string::npos);
    CHECK(said[rank].find(of_others) != std::string::npos);
    CHECK(went_on[rank] == (keeps ? "barrier" : said[rank]));
  }
}

/// All pairs of different calls.
template <class Run>
void check_all(int ranks, int odd, const Run& run) {
  for (std::size_t others = 0; others < std::size(all); ++others) {
    for (std::size_t other = 0; other < std::size(all); ++other) {
      if (other != others) check(ranks, odd, others, other, run);
    }
  }
}

}  // namespace collectives
