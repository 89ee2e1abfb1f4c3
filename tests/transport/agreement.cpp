// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Ranks that do not say the same are told so, all of them, instead of hanging later.
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/transport/threads.hpp"

#include "topologies.hpp"

namespace {

using orrery::agreement;

/// The sentence that all ranks throw when `body` runs on them.
template <class Body>
std::string said_by_all(int ranks, const Body& body) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks), "nothing");
  orrery::threads::run(ranks, [&](auto& on) {
    try {
      body(on);
    } catch (const std::invalid_argument& e) {
      said[static_cast<std::size_t>(on.rank())] = e.what();
    }
    on.barrier();  // the world is still good
  });
  for (const std::string& one : said) {
    if (one != said[0]) return "ranks say different things: " + said[0] + " / " + one;
  }
  return said[0];
}

using shape = orrery::attention_shape;
constexpr shape usual{.batch = 1, .length = 64, .query_heads = 4, .key_heads = 2, .head_dim = 8};

/// Rank 2 of four constructs another operator than the others.
template <class Topology = orrery::ring, class Kernel = orrery::flash<float>, class Mask = orrery::full,
          class Layout = orrery::contiguous>
std::string disagreement(const shape& other, const Mask& mask = {}, const Layout& layout = {}) {
  return said_by_all(4, [&](auto& on) {
    if (on.rank() == 2) {
      const orrery::attention<Topology, Kernel> attend{on, other, mask, layout};
    } else {
      const orrery::attention<orrery::ring, orrery::flash<float>> attend{on, usual};
    }
  });
}

template <class Change>
shape but(const Change& change) {
  shape s = usual;
  change(s);
  return s;
}

std::string differ(const std::string& field, const std::string& others, const std::string& mine) {
  return "orrery: ranks disagree about " + field + ": ranks 0, 1, 3 have " + others + "; rank 2 has " + mine +
         "; give all ranks the same";
}

}  // namespace

TEST_CASE("every field of the shape") {
  CHECK(disagreement(usual) == "nothing");
  CHECK(disagreement(but([](shape& s) { s.batch = 2; })) == differ("batch", "1", "2"));
  CHECK(disagreement(but([](shape& s) { s.length = 65, s.key_length = 64; })) == differ("length", "64", "65"));
  CHECK(disagreement(but([](shape& s) { s.query_heads = 8; })) == differ("query_heads", "4", "8"));
  CHECK(disagreement(but([](shape& s) { s.key_heads = 4; })) == differ("key_heads", "2", "4"));
  CHECK(disagreement(but([](shape& s) { s.head_dim = 9, s.value_dim = 8; })) == differ("head_dim", "8", "9"));
  CHECK(disagreement(but([](shape& s) { s.value_dim = 7; })) == differ("value_dim", "8", "7"));
  CHECK(disagreement(but([](shape& s) { s.key_length = 63; })) == differ("key_length", "64", "63"));
  CHECK(disagreement(but([](shape& s) { s.circulate = orrery::pass::circulate_queries; })) ==
        differ("circulate", "circulate_keys", "circulate_queries"));
}

TEST_CASE("scales that differ in their last bit") {
  const auto with_scale = [](double scale) { return but([=](shape& s) { s.scale = scale; }); };
  const double usual_scale = 1 / std::sqrt(8.0);
  CHECK(disagreement(with_scale(usual_scale)) == "nothing");
  for (const double scale : {0.5, std::nextafter(usual_scale, 1.0), 1e-9}) {
    CHECK(disagreement(with_scale(scale)).find("orrery: ranks disagree about scale: ") == 0);
  }
}

TEST_CASE("topology, kernel, mask and layout") {
  CHECK(disagreement<orrery::all_gather>(usual) == differ("topology", "ring", "all_gather"));
  CHECK(disagreement<orrery::concentric<2>>(usual) == differ("topology", "ring", "concentric<2,1>"));
  CHECK(disagreement<my_ring>(usual) == differ("topology", "ring", "custom topology"));
  CHECK(disagreement<orrery::ring, orrery::flash<double>>(usual) == differ("kernel", "flash<float>", "flash<double>"));
  CHECK(disagreement<orrery::ring, orrery::reference<float>>(usual) ==
        differ("kernel", "flash<float>", "reference<float>"));
  using orrery::flash;
  using orrery::ring;
  CHECK(disagreement<ring, flash<float>>(usual, orrery::causal{}) == differ("mask", "full", "causal"));
  CHECK(disagreement<ring, flash<float>>(usual, orrery::causal{3}) == differ("mask", "full", "causal with offset 3"));
  CHECK(disagreement<ring, flash<float>>(usual, orrery::full{}, orrery::zigzag{}) ==
        differ("layout", "contiguous", "zigzag"));
  CHECK(disagreement<ring, flash<float>>(usual, orrery::full{}, orrery::striped<4>{}) ==
        differ("layout", "contiguous", "striped<4>"));
}

TEST_CASE("an error on one rank is thrown on all") {
  CHECK(disagreement(but([](shape& s) { s.length = 0; })) == "orrery: rank 2: length is 0, expected at least 1");
  CHECK(disagreement<orrery::wallfacer<3>>(usual).find("orrery: rank 2: topology wallfacer<3> over 4 ranks needs") ==
        0);
}

TEST_CASE("more than two opinions") {
  CHECK(said_by_all(5,
                    [](auto& on) {
                      const agreement mine[] = {{"colour", "red"}, {"size", std::to_string(on.rank() / 2)}};
                      orrery::require_agreement(on, mine);
                    }) ==
        "orrery: ranks disagree about size: ranks 0, 1 have 0; ranks 2, 3 have 1; rank 4 has 2; give all ranks the "
        "same");
}

TEST_CASE("a field that only some ranks name") {
  CHECK(said_by_all(2, [](auto& on) {
          std::vector<agreement> mine{{"colour", "red"}};
          if (on.rank() == 0) mine.push_back({"size", "3"});
          orrery::require_agreement(on, mine);
        }) == "orrery: ranks disagree about size: rank 0 has 3; rank 1 has nothing; give all ranks the same");
  CHECK(said_by_all(2, [](auto& on) {
          std::vector<agreement> mine{{"colour", "red"}};
          if (on.rank() == 1) mine.push_back({"size", "3"});
          orrery::require_agreement(on, mine);
        }) == "orrery: ranks disagree about size: rank 0 has nothing; rank 1 has 3; give all ranks the same");
}

TEST_CASE("nothing to agree about, or one rank alone") {
  CHECK(said_by_all(3, [](auto& on) { orrery::require_agreement(on, {}); }) == "nothing");
  CHECK(said_by_all(1, [](auto& on) {
          const agreement mine[] = {{"colour", "red"}};
          orrery::require_agreement(on, mine);
        }) == "nothing");
}

TEST_CASE("blocks in sentences") {
  using orrery::side;
  CHECK(orrery::describe_blocks({}) == "");
  orrery::list<orrery::block> several;
  several.push_back({side::key, 3, 0});
  several.push_back({side::query, 1, 0});
  several.push_back({side::query, 0, 2});
  CHECK(orrery::describe_blocks(several) == "key shard 3, query shard 1, query shard 0 (slice 2)");
}
