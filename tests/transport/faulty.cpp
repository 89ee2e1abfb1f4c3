// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What a script says happens, where and when it says, once; without one nothing does.
#include "orrery/transport/faulty.hpp"

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/topology/ring.hpp"
#include "orrery/transport/adaptor.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/threads.hpp"

#include "run/pairs.hpp"
#include "support/time_limit.hpp"

namespace {

using threads_world = orrery::threads::world;
using faulty = orrery::faulty<threads_world>;
static_assert(orrery::transport<faulty>);
static_assert(orrery::transport<orrery::counted<faulty>>);
static_assert(orrery::transport<orrery::faulty<orrery::counted<threads_world>>>);

/// What rank 1 of four throws as a T; the others' exceptions are dropped. Each rank calls a ring's forward twice.
template <class T>
std::string said(const std::vector<orrery::faults::scripted_fault>& script, double deadline = 3600) {
  std::string text = "nothing";
  const time_limit limit;
  try {
    orrery::threads::run(4, {.deadline = deadline}, [&](threads_world& on) {
      faulty unlucky{on, script};
      try {
        pairs::check_rank<orrery::ring>(unlucky, orrery::pass::forward, 16, 16);
      } catch (const T& e) {
        if (on.rank() == 1) text = e.what();
        throw;
      }
    });
  } catch (const std::exception&) {}
  return text;
}

}  // namespace

TEST_CASE("a script for other ranks, calls or steps changes nothing") {
  std::vector<int> acted(4, 0);
  const auto act = [&](int rank) { return [&, rank] { ++acted[static_cast<std::size_t>(rank)]; }; };
  CHECK(said<std::exception>({}) == "nothing");
  CHECK(said<std::exception>({orrery::faults::fails(7, {}), orrery::faults::fails(1, {.call = 2}),
                              orrery::faults::fails(1, {0, 4}), orrery::faults::acts(2, {0, 1}, act(2)),
                              orrery::faults::acts(1, {1, 3}, act(1)), orrery::faults::acts(1, {0, 0}, act(1)),
                              orrery::faults::stalls(1, {0, 1}, 0.001), orrery::faults::arrives_late(3, 0.001)}) ==
        "nothing");
  CHECK(acted == std::vector<int>{0, 2, 1, 0});
}

TEST_CASE("a rank fails in the step and the call of its script") {
  const auto message = [](int call, int step) {
    return said<orrery::faults::injected_fault>({orrery::faults::fails(1, {call, step})});
  };
  CHECK(message(0, 0) == "rank 1 in step 0 of call 0 fails, as its script says");
  CHECK(message(0, 2) == "rank 1 in step 2 of call 0 fails, as its script says");
  CHECK(message(1, 3) == "rank 1 in step 3 of call 1 fails, as its script says");
}

TEST_CASE("a rank that has stopped wakes when the world has failed, or when nobody notices") {
  CHECK(said<orrery::transport_error>({orrery::faults::stops(1, {0, 1}, 3600)}, 0.2)
            .find("orrery: rank 1 stops: rank ") == 0);
  CHECK(said<orrery::faults::injected_fault>({orrery::faults::stops(1, {0, 1}, 0.01)}) ==
        "rank 1 in step 1 of call 0 has stopped, and nobody has noticed for 0.01 s");
  CHECK(
      said<orrery::transport_error>({orrery::faults::arrives_late(1, 3600)}, 0.2).find("orrery: rank 1 stops: rank ") ==
      0);
}

TEST_CASE("a wrong length") {
  CHECK(said<orrery::transport_error>({orrery::faults::sends_wrong_length(1, 2)}) ==
        "orrery: rank 1 sends key shard 3 to rank 2, which does not expect it, or not in this size; this world can "
        "still be used");
  CHECK(said<std::exception>({orrery::faults::sends_wrong_length(1, 2, 1)}) == "nothing");  // there is one plan only
  CHECK(said<std::invalid_argument>({orrery::faults::sends_wrong_length(1, 3)}) ==
        "orrery: faulty: exchange 3 of this plan sends nothing; choose one that does");
}

namespace {

/// Notes the sizes of what the first exchange of a plan sends.
template <class World>
class noting_sizes : public orrery::transport_adaptor<World, noting_sizes<World>> {
 public:
  using orrery::transport_adaptor<World, noting_sizes<World>>::transport_adaptor;

  auto open(const orrery::program& p, std::vector<orrery::exchange_pieces> pieces) {
    for (const orrery::piece& part : pieces.at(0).sent) sizes.push_back(part.bytes);
    return this->world().open(p, {});
  }
  std::vector<std::int64_t> sizes;
};

}  // namespace

TEST_CASE("a wrong length cuts the first block that is not empty") {
  std::vector<std::int64_t> sizes;
  orrery::threads::run(1, [&](threads_world& on) {
    noting_sizes<threads_world> noting{on};
    orrery::faulty unlucky{noting, {orrery::faults::sends_wrong_length(0, 0)}};
    std::byte block[16];
    static_cast<void>(unlucky.open({}, {{{{block, 0}, {block, 8}, {block, 8}}, {}}}));
    sizes = noting.sizes;
  });
  CHECK(sizes == std::vector<std::int64_t>{0, 7, 8});
}

TEST_CASE("a field that differs from that of other ranks") {
  std::vector<std::string> texts;
  orrery::threads::run(2, [&](threads_world& on) {
    faulty unlucky{on, {orrery::faults::disagrees(1, "size"), orrery::faults::disagrees(1, "other")}};
    const orrery::detail::agreement local[] = {{"other size", "3"}, {"size", "4"}};
    try {
      orrery::detail::require_agreement(unlucky, {local, 1});  // does not name it
      orrery::detail::require_agreement(unlucky, local);
    } catch (const std::invalid_argument& e) {
      if (on.rank() == 0) texts.push_back(e.what());
    }
    orrery::detail::require_agreement(unlucky, local);  // once
  });
  CHECK(texts == std::vector<std::string>{
                     "orrery: ranks disagree about size: rank 0 has 4; rank 1 has not 4; give all ranks the same"});
}

TEST_CASE("between other adaptors") {
  CHECK_NOTHROW(orrery::threads::run(4, [](threads_world& on) {
    orrery::counted inside{on};
    orrery::faulty unlucky{inside, {orrery::faults::stalls(1, {0, 1}, 0.001)}};
    orrery::counted outside{unlucky};
    pairs::check_rank<orrery::ring>(outside, orrery::pass::forward, 16, 16);
    if (inside.bytes_sent() != outside.bytes_sent() || inside.bytes_sent() == 0) throw std::logic_error{"bytes"};
  }));
}
