// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Ranks that do not say the same are told so, all of them, instead of hanging later.
#include <cmath>
#include <cstddef>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/faulty.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/transport/traced.hpp"

#include "support/topologies.hpp"
#include "transport/collectives.hpp"

namespace agreement_test {

namespace {

using orrery::detail::agreement;

/// The message that all ranks throw when `body` runs on them.
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

std::string differ(const std::string& field, const std::string& others, const std::string& local) {
  return "orrery: ranks disagree about " + field + ": ranks 0, 1, 3 have " + others + "; rank 2 has " + local +
         "; give all ranks the same";
}

constexpr auto construct = [](orrery::threads::world& on) {
  const orrery::attention<orrery::ring, orrery::flash<float>> attend{on, usual};
};
constexpr auto agree = [](auto& on) { orrery::detail::require_agreement(on, {}); };

}  // namespace

TEST_CASE(
    "ranks in different collective calls: all of them get the message who calls what, and none hangs or crashes") {
  const orrery::threads::options options{.deadline = 3600};
  for (const int ranks : {2, 3, 4}) {
    for (const int odd : {0, ranks - 1}) {
      collectives::check_all(ranks, odd, [&](const auto& body) {
        orrery::threads::run(ranks, options, [&](auto& on) { body(on, construct); });
      });
    }
  }
  collectives::check_all(3, 1, [&](const auto& body) {  // through adaptors
    orrery::threads::run(3, options, [&](auto& on) {
      orrery::counted counting{on};
      orrery::faulty unlucky{counting, {}};
      orrery::traced recorder{unlucky};
      body(recorder, agree);
    });
  });
}

TEST_CASE("a rank that has skipped a collective call meets the others one call later") {
  std::vector<std::string> said(3);
  orrery::threads::run(3, {.deadline = 3600}, [&](auto& on) {
    const auto rank = static_cast<std::size_t>(on.rank());
    try {
      for (int call = 0; call < 3; ++call) {
        if (rank != 1 || call != 1) on.barrier();
      }
      if (rank == 1) static_cast<void>(on.all_gather("hello"));
    } catch (const orrery::transport_error& e) {
      said[rank] = e.what();
    }
  });
  for (std::size_t rank = 0; rank < 3; ++rank) {
    CHECK(said[rank] == "orrery: rank " + std::to_string(rank) +
                            " stops: ranks are in different collective calls: ranks 0, 2 call barrier; rank 1 calls "
                            "all_gather; let all ranks make the same calls, in one order; this world cannot be used "
                            "any more");
  }
}

TEST_CASE("texts that are not agreements") {
  const auto said = [](const std::string& text) {
    const agreement good[] = {{"colour", "red"}};
    try {
      orrery::detail::compare_agreements({orrery::detail::text_of(good), text});
    } catch (const orrery::transport_error& e) {
      return std::string{e.what()};
    } catch (const orrery::disagreement&) {
      return std::string{"disagreement"};
    }
    return std::string{"nothing"};
  };
  for (const std::string malformed :
       {"hello", "\x1e", "\x1f", "colour\x1fred", "\x1fred\x1e", "colour\x1e", "colour\x1ered\x1f",
        "a\x1f"
        "b\x1f"
        "c\x1e",
        "colour\x1fred\x1ehello", "colour\x1fred\x1e\x1e"}) {
    INFO(malformed);
    CHECK(said(malformed).find("orrery: rank 1 gives a text of " + std::to_string(malformed.size()) +
                               " bytes that is not a list of agreements") == 0);
  }
  CHECK(said("colour\x1fred\x1e") == "nothing");
  CHECK(said("colour\x1f\x1e") == "disagreement");
  CHECK(said("") == "disagreement");
  CHECK_NOTHROW(orrery::detail::compare_agreements({}));

  // Any text is refused, or is one that would be written like this.
  std::minstd_rand random{3};
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text(random() % 12, ' ');
    for (char& c : text) c = "ab\x1e\x1f"[random() % 4];
    orrery::schedule::list<agreement> fields;
    if (!orrery::detail::parse_agreements(text, fields)) continue;
    ++accepted;
    CHECK(orrery::detail::text_of({fields.begin(), fields.end()}) == text);
  }
  CHECK(accepted > 100);
  CHECK(accepted < 10000);
}

TEST_CASE("separators inside a name or a value are replaced") {
  CHECK(said_by_all(2, [](auto& on) {
          const agreement local[] = {{"mask", on.rank() == 0 ? "odd\x1e\x1f" : "odd"}};
          orrery::detail::require_agreement(on, local);
        }) == "orrery: ranks disagree about mask: rank 0 has odd??; rank 1 has odd; give all ranks the same");
}

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
  CHECK(disagreement(but([](shape& s) { s.forward_only = true; })) == differ("forward_only", "false", "true"));
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

TEST_CASE("more than two different values") {
  CHECK(said_by_all(5,
                    [](auto& on) {
                      const agreement local[] = {{"colour", "red"}, {"size", std::to_string(on.rank() / 2)}};
                      orrery::detail::require_agreement(on, local);
                    }) ==
        "orrery: ranks disagree about size: ranks 0, 1 have 0; ranks 2, 3 have 1; rank 4 has 2; give all ranks the "
        "same");
}

TEST_CASE("a field that only some ranks have") {
  CHECK(said_by_all(2, [](auto& on) {
          std::vector<agreement> local{{"colour", "red"}};
          if (on.rank() == 0) local.push_back({"size", "3"});
          orrery::detail::require_agreement(on, local);
        }) == "orrery: ranks disagree about size: rank 0 has 3; rank 1 has nothing; give all ranks the same");
  CHECK(said_by_all(2, [](auto& on) {
          std::vector<agreement> local{{"colour", "red"}};
          if (on.rank() == 1) local.push_back({"size", "3"});
          orrery::detail::require_agreement(on, local);
        }) == "orrery: ranks disagree about size: rank 0 has nothing; rank 1 has 3; give all ranks the same");
}

TEST_CASE("no fields, or a single rank") {
  CHECK(said_by_all(3, [](auto& on) { orrery::detail::require_agreement(on, {}); }) == "nothing");
  CHECK(said_by_all(1, [](auto& on) {
          const agreement local[] = {{"colour", "red"}};
          orrery::detail::require_agreement(on, local);
        }) == "nothing");
}

TEST_CASE("blocks in messages") {
  using orrery::schedule::side;
  CHECK(orrery::detail::describe_blocks({}) == "");
  orrery::schedule::list<orrery::schedule::block> several;
  several.push_back({side::key, 0, 3, 0});
  several.push_back({side::query, 0, 1, 0});
  several.push_back({side::query, 0, 0, 2});
  CHECK(orrery::detail::describe_blocks(several) == "key shard 3, query shard 1, query shard 0 (slice 2)");
}

}  // namespace agreement_test
