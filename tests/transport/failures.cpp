// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Whatever goes wrong on one rank, and in whichever topology: every rank ends in a message that names the rank at
// fault, and the step, block and peer that it waited for itself; and says whether the world can still be used.
#include <cstddef>
#include <functional>
#include <memory>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/faulty.hpp"
#include "orrery/transport/threads.hpp"

#include "support/any.hpp"
#include "support/conformance.hpp"
#include "support/time_limit.hpp"

namespace {

/// The `tile`-th call of this thread's kernel throws.
constexpr int forever = -1;
thread_local int tiles_left = forever;

struct throwing : orrery::flash<double> {
  template <class... Arguments>
  static void forward(const Arguments&... arguments) {
    if (tiles_left-- == 0) throw std::runtime_error{"the kernel has thrown"};
    orrery::flash<double>::forward(arguments...);
  }
};

using attention = orrery::attention<orrery::any_topology, throwing>;
using world_with_faults = orrery::faulty<orrery::counted<orrery::threads::world>>;

constexpr orrery::attention_shape shape{.length = 40, .query_heads = 6, .key_heads = 6, .head_dim = 4};

/// What one rank has thrown, and what it says when it is called again.
struct ending {
  std::string message = "nothing";
  std::string again = "nothing";
  bool usable = true;
};

template <class Call>
std::string message_of_exception(const Call& call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "nothing";
}

/// Makes the operator and calls forward, backward, forward. `at_rank` prepares each rank's thread.
std::vector<ending> endings(
    int ranks, const orrery::any_topology& topology, const std::vector<orrery::faults::scripted_fault>& script,
    double deadline, const std::function<void(int)>& at_rank = [](int) {}) {
  std::vector<ending> all(static_cast<std::size_t>(ranks));
  const time_limit limit;
  orrery::threads::run(ranks, {.deadline = deadline}, [&](orrery::threads::world& on) {
    ending& local = all[static_cast<std::size_t>(on.rank())];
    orrery::counted counting{on};
    world_with_faults unlucky{counting, script};
    at_rank(on.rank());
    local.message = message_of_exception([&] {
      attention attend{unlucky, shape, any::mask{}, orrery::contiguous{}, topology};
      const auto p = oracle::random_problem<double>(conformance::oracle_shape(shape), 1);
      conformance::rank_tensors<throwing> tensors{p, attend.query_positions(), attend.key_positions(), {}};
      try {
        tensors.forward(attend);
        tensors.backward(attend);
        tensors.forward(attend);
      } catch (...) {
        local.again = message_of_exception([&] { tensors.forward(attend); });
        throw;
      }
      on.barrier();  // nobody ends before the others: that would be a failure of its own
    });
    tiles_left = forever;
    if (local.again == "nothing") local.again = message_of_exception([&] { on.barrier(); });
    local.usable = unlucky.usable();
  });
  return all;
}

const std::string step_block_peer =
    "in step [0-9]+ for (rank [0-9]+ to take )?(the partial of )?(query|key) shard [0-9]+.*( from rank [0-9]+)?";

bool matches(const std::string& text, const std::string& pattern) {
  return std::regex_search(text, std::regex{pattern});
}

/// The same with a short deadline, which a busy machine may miss of itself: longer ones follow until what the survivors
/// say has this cause.
std::vector<ending> endings_after_deadline(int ranks, const orrery::any_topology& topology,
                                           const std::vector<orrery::faults::scripted_fault>& script,
                                           const std::string& cause) {
  for (double deadline = 0.4;; deadline *= 3) {
    std::vector<ending> all = endings(ranks, topology, script, deadline);
    bool right = true;
    for (const ending& one : all) right = right && matches(one.message, cause);
    if (right || deadline > 10) return all;
  }
}

/// The topologies that differ most in what their ranks wait for.
std::vector<orrery::any_topology> topologies() {
  return {orrery::ring{}, orrery::concentric<2>{}, orrery::ulysses{}, orrery::wallfacer<2>{}};
}

/// A failure that nobody needs to wait for: each rank but `culprit` has failed with this cause, and has waited
/// somewhere.
void check_lost(const std::vector<ending>& all, int culprit, const std::string& cause) {
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    const ending& one = all[rank];
    CAPTURE(rank);
    CAPTURE(one.message);
    CHECK_FALSE(one.usable);
    CHECK(matches(one.again, cause));
    CHECK(matches(one.again, "this world cannot be used any more$"));
    if (static_cast<int>(rank) == culprit) continue;
    CHECK(matches(one.message, "^orrery: rank " + std::to_string(rank) + " stops: .*" + cause));
    CHECK((matches(one.message, step_block_peer) || matches(one.message, "; rank [0-9] was beginning a call; ") ||
           matches(one.message, "; rank [0-9] was (coming to|waiting for all ranks to come to) .*collective call; ")));
    CHECK(one.again == one.message);
    CHECK(matches(one.message, "this world cannot be used any more$"));
  }
}

}  // namespace

TEST_CASE("without faults, nothing fails") {
  for (const orrery::any_topology& topology : topologies()) {
    for (const ending& one : endings(4, topology, {}, 3600)) {
      CHECK(one.message == "nothing");
      CHECK(one.again == "nothing");
      CHECK(one.usable);
    }
  }
}

TEST_CASE("a rank that stops, in the first call and in a later one, is named by all") {
  const std::string cause = "has waited [0-9.]+ s in step .*rank 2 is not waiting: it is late or stopped";
  for (const orrery::any_topology& topology : topologies()) {
    for (const int call : {0, 1}) {
      CAPTURE(topology.name());
      check_lost(endings_after_deadline(4, topology, {orrery::faults::stops(2, {call, 0}, 3600)}, cause), 2, cause);
    }
  }
}

TEST_CASE("a rank that is delayed beyond the deadline learns that the others have failed") {
  const std::string cause = "has waited [0-9.]+ s in step .*rank 3 is not waiting";
  check_lost(endings_after_deadline(4, {orrery::ring{}}, {orrery::faults::stalls(3, {0, 1}, 3600)}, cause), 3, cause);
}

TEST_CASE("a rank that comes late is awaited up to the deadline; after it, the message names the rank") {
  for (const ending& one : endings(3, {orrery::ring{}}, {orrery::faults::arrives_late(1, 0.05)}, 3600)) {
    CHECK(one.message == "nothing");
  }
  const std::string cause =
      "has waited [0-9.]+ s for all ranks to come to the same collective call; missing: rank 1(;|$)";
  for (const ending& one :
       endings_after_deadline(3, {orrery::ring{}}, {orrery::faults::arrives_late(1, 3600)}, cause)) {
    CHECK(matches(one.message, cause));
    CHECK_FALSE(one.usable);
  }
}

TEST_CASE("a rank that fails stops the others at once") {
  for (const orrery::any_topology& topology : topologies()) {
    CAPTURE(topology.name());
    for (const int call : {0, 1}) {
      const auto all = endings(4, topology, {orrery::faults::fails(2, {call, 1})}, 3600);
      check_lost(all, 2,
                 "rank 2 failed in step [0-9]+: rank 2 in step [0-9]+ of call " + std::to_string(call) + " fails");
      CHECK(matches(all[2].message, "as its script says$"));
    }
  }
}

TEST_CASE("a kernel that throws stops the others at once, and its exception is the rank's own") {
  for (const orrery::any_topology& topology : topologies()) {
    CAPTURE(topology.name());
    const auto all = endings(4, topology, {}, 3600, [](int rank) { tiles_left = rank == 1 ? 0 : forever; });
    check_lost(all, 1, "rank 1 failed in step [0-9]+: the kernel has thrown");
    CHECK(all[1].message == "the kernel has thrown");
  }
}

TEST_CASE("a wrong length and another shape are refused by all, and the world can still be used") {
  for (const orrery::any_topology& topology : topologies()) {
    CAPTURE(topology.name());
    for (const ending& one : endings(4, topology, {orrery::faults::sends_wrong_length(1, 0)}, 3600)) {
      CHECK(matches(one.message,
                    "^orrery: rank 1 sends (key|query) shard .* to rank [0-9], which does not expect it, or "
                    "not in this size; this world can still be used$"));
      CHECK(one.again == "nothing");
      CHECK(one.usable);
    }
    for (const ending& one : endings(4, topology, {orrery::faults::disagrees(3, "length")}, 3600)) {
      CHECK(one.message ==
            "orrery: ranks disagree about length: ranks 0, 1, 2 have 40; rank 3 has not 40; give all "
            "ranks the same");
      CHECK(one.again == "nothing");
      CHECK(one.usable);
    }
  }
}

TEST_CASE("a rank that continues after its kernel has thrown gets the message again, and does not mix up two calls") {
  // Alone it has nobody to tell, and nobody who could tell it.
  const auto all = endings(1, {orrery::ring{}}, {}, 3600, [](int) { tiles_left = 0; });
  CHECK(all[0].message == "the kernel has thrown");
  CHECK(matches(all[0].again,
                "stops: rank 0 failed in step 0: the kernel has thrown; rank 0 was beginning a call; this world "));
}

namespace {

/// Operators whose world has ended; destroyed at the end of the process.
std::vector<std::unique_ptr<attention>>& outliving() {
  static std::vector<std::unique_ptr<attention>> kept;
  return kept;
}

}  // namespace

TEST_CASE(
    "operators that outlive their world, after a call that has failed and one that has not ended, can be destroyed") {
  outliving().resize(3);
  for (const bool begun : {false, true}) {
    std::vector<std::unique_ptr<orrery::started_forward<throwing>>> started(3);
    orrery::threads::run(3, {.deadline = 3600}, [&](orrery::threads::world& on) {
      const auto rank = static_cast<std::size_t>(on.rank());
      orrery::counted counting{on};
      world_with_faults unlucky{counting, {}};
      auto& attend = outliving()[rank];
      attend = std::make_unique<attention>(unlucky, shape, any::mask{}, orrery::contiguous{}, orrery::ring{});
      const auto p = oracle::random_problem<double>(conformance::oracle_shape(shape), 1);
      conformance::rank_tensors<throwing> tensors{p, attend->query_positions(), attend->key_positions(), {}};
      if (begun) {
        started[rank].reset(
            new orrery::started_forward<throwing>(attend->begin_forward(tensors.out.view(), tensors.lse.view())));
      } else {
        tiles_left = rank == 1 ? 1 : forever;
        const std::string said = message_of_exception([&] { tensors.forward(*attend); });
        CHECK((rank != 1 || said == "the kernel has thrown"));
        tiles_left = forever;
      }
    });
    started.clear();
    const auto p = oracle::random_problem<double>(conformance::oracle_shape(shape), 1);
    for (auto& attend : outliving()) {
      conformance::rank_tensors<throwing> tensors{p, attend->query_positions(), attend->key_positions(), {}};
      CHECK(matches(message_of_exception([&] { tensors.forward(*attend); }),
                    "^orrery: rank [0-2]: this operator's world has ended, so it cannot be called any more$"));
    }
  }
}
