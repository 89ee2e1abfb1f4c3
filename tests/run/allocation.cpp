// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Calls allocate nothing; and what happens where an allocation fails. This file replaces the operators new and delete
// of its executable.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/faulty.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/transport/traced.hpp"

#include "run/pairs.hpp"
#include "support/conformance.hpp"
#include "support/topologies.hpp"

namespace {

/// Of this thread, which is one rank.
thread_local std::int64_t allocations = 0;
thread_local std::int64_t plan_bytes = 0;  // of memory aligned as only plans' buffers are
thread_local std::int64_t fails_at = -1;   // the allocation that fails
thread_local bool fails_for_good = false;  // and all after it

void* take(std::size_t bytes, std::size_t alignment) {
  const std::int64_t number = allocations++;
  if (number == fails_at || (fails_for_good && fails_at >= 0 && number > fails_at)) throw std::bad_alloc{};
  void* const taken = std::aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
  if (taken == nullptr) throw std::bad_alloc{};
  return taken;
}

}  // namespace

// Of arrays, too: a sanitizer's own forms for them would not call these. Not inlined, or GCC sees what is freed.
[[gnu::noinline]] void* operator new[](std::size_t bytes) { return take(bytes, alignof(std::max_align_t)); }
[[gnu::noinline]] void operator delete[](void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void* operator new(std::size_t bytes) { return take(bytes, alignof(std::max_align_t)); }
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  plan_bytes += static_cast<std::int64_t>(bytes);
  return take(bytes, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

template <class Topology, class Kernel>
void check_calls_allocate_nothing() {
  for (const int world : {1, 4, 8, 9}) {
    for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
      if (orrery::unsupported_reason(Topology{}, world, circulate) != nullptr) continue;
      const orrery::attention_shape shape{
          .length = 45, .query_heads = 9, .key_heads = 3, .head_dim = 8, .circulate = circulate};
      const auto p = oracle::random_problem<typename Kernel::storage>(conformance::oracle_shape(shape), 1);
      INFO(orrery::name_of(Topology{}), " over ", world, ", ", Kernel::name(), ", ", orrery::name_of(circulate));
      CHECK_NOTHROW(orrery::threads::run(world, {.threads_per_rank = 1 + world % 2}, [&](auto& on) {
        orrery::counted counting{on};
        const std::int64_t bytes_before = plan_bytes;
        orrery::attention<Topology, Kernel> attend{counting, shape, orrery::causal{}, orrery::zigzag{}};
        // A team of threads aligns, too.
        if (const std::int64_t taken = plan_bytes - bytes_before; world % 2 == 0 && taken != attend.workspace_bytes()) {
          throw std::logic_error{"the plan reports " + std::to_string(attend.workspace_bytes()) +
                                 " bytes and has taken " + std::to_string(taken)};
        }
        conformance::rank_tensors<Kernel> local{p, attend.query_positions(), attend.key_positions(), {}};
        local.forward(attend);
        local.backward(attend);
        const std::int64_t before = allocations;
        for (int call = 0; call < 2; ++call) {
          local.forward(attend);
          local.backward(attend);
        }
        if (allocations != before) throw std::logic_error{std::to_string(allocations - before) + " allocations"};
      }));
    }
  }
}

}  // namespace

TEST_CASE("the count counts") {
  const std::int64_t before = allocations;
  ::operator delete(::operator new(1));  // unlike expressions with new, these must not be left out
  ::operator delete[](::operator new[](100));
  const orrery::detail::host_memory aligned{100};
  CHECK(reinterpret_cast<std::uintptr_t>(aligned.data()) % 64 == 0);
  CHECK(allocations == before + 3);
}

TEST_CASE_TEMPLATE("calls allocate nothing", Topology, ORRERY_TEST_TOPOLOGIES) {
  check_calls_allocate_nothing<Topology, orrery::flash<float>>();
}

TEST_CASE("calls allocate nothing, where the kernel sums in another type than it stores") {
  check_calls_allocate_nothing<orrery::ring, orrery::reference<float>>();
  check_calls_allocate_nothing<orrery::ulysses, orrery::reference<float>>();
}

TEST_CASE("calls allocate nothing under a flight recorder, and with faults that are yet to come") {
  CHECK_NOTHROW(orrery::threads::run(4, [](auto& on) {
    orrery::faulty unlucky{on, {orrery::faults::fails(1, {100, 0})}};
    orrery::traced recorder{unlucky, {.events = 20}};
    const orrery::program steps = orrery::program_of(orrery::ring{}, on.rank(), 4, orrery::pass::forward);
    pairs::work local{{40, 4}, {44, 4}, steps};
    orrery::executor run{recorder, steps, local};
    run.run();
    const std::int64_t before = allocations;
    for (int call = 0; call < 5; ++call) run.run();
    if (allocations != before) throw std::logic_error{std::to_string(allocations - before) + " allocations"};
  }));
}

namespace {

/// Rank `odd` fails in its n-th allocation while it constructs an operator, catches what is thrown and goes on to a
/// collective call, as a trainer does that tells the others. Returns what the ranks say; empty if there are fewer
/// allocations.
template <class Construct>
std::vector<std::string> said_without_memory(int ranks, int odd, std::int64_t nth, bool for_good,
                                             const Construct& construct) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks));
  bool enough = false;
  orrery::threads::run(ranks, {.deadline = 3600, .threads_per_rank = 1 + ranks % 2 * 2}, [&](auto& on) {
    std::string& local = said[static_cast<std::size_t>(on.rank())];
    bool failed = false;
    if (on.rank() == odd) fails_at = allocations + nth, fails_for_good = for_good;
    try {
      construct(on);
    } catch (const orrery::transport_error& e) {
      fails_at = -1;
      local = e.what();
    } catch (const std::bad_alloc&) {
      failed = true;
    } catch (const std::exception&) {  // a helper's thread
      failed = true;
    }
    if (on.rank() == odd) enough = fails_at >= allocations, fails_at = -1;
    try {
      std::vector<float> flag{failed ? 1.0F : 0.0F};
      on.all_reduce_sum(std::span{flag});
      if (flag[0] != 0) throw std::logic_error{"the world goes on"};
    } catch (const orrery::transport_error& e) {
      if (local.empty()) local = e.what();
    }
  });
  if (enough) return {};
  return said;
}

}  // namespace

TEST_CASE(
    "a rank without memory for an operator, which continues: no rank crashes or hangs, and all messages name it") {
  const orrery::attention_shape shape{.length = 13, .query_heads = 2, .head_dim = 4};
  for (const int ranks : {2, 3, 4}) {
    for (const bool for_good : {false, true}) {
      std::int64_t nth = 0;
      for (;; ++nth) {
        const int odd = static_cast<int>(nth) % ranks;
        const std::vector<std::string> said = said_without_memory(ranks, odd, nth, for_good, [&](auto& on) {
          const orrery::attention<orrery::ring, orrery::flash<float>> attend{on, shape, orrery::causal{}};
        });
        if (said.empty()) break;
        for (std::size_t rank = 0; rank < said.size(); ++rank) {
          INFO(ranks, " ranks, allocation ", nth, " of rank ", odd, " fails", for_good ? ", and all after it" : "");
          INFO("said: ", said[rank]);
          CHECK(said[rank].find("orrery: rank " + std::to_string(rank) + " stops: rank " + std::to_string(odd) +
                                " failed") == 0);
        }
      }
      CHECK(nth > 30);
    }
  }
}

TEST_CASE("a rank without memory for an operator's next plan: no rank crashes or hangs, and all messages name it") {
  constexpr int ranks = 3;
  std::int64_t nth = 0;
  for (;; ++nth) {
    const int odd = static_cast<int>(nth) % ranks;
    const std::vector<std::string> said = said_without_memory(ranks, odd, nth, false, [&](auto& on) {
      const orrery::attention_shape shape{.length = 13, .query_heads = 2, .head_dim = 4};
      orrery::attention<orrery::ring, orrery::flash<float>> attend{on, shape, orrery::causal{}};
      try {
        attend.replan(on, orrery::full{}, orrery::striped<1>{});
      } catch (const std::bad_alloc&) {
        // It has its old plan, or none: then its calls say so.
        try {
          static_cast<void>(attend.workspace_bytes());
        } catch (const std::logic_error& e) {
          if (std::string{e.what()}.find("has no plan, since replan failed") == std::string::npos) throw;
        }
        throw;
      }
    });
    if (said.empty()) break;
    for (std::size_t rank = 0; rank < said.size(); ++rank) {
      INFO("allocation ", nth, " of rank ", odd, " fails; said: ", said[rank]);
      CHECK(said[rank].find("orrery: rank " + std::to_string(rank) + " stops: rank " + std::to_string(odd) +
                            " failed") == 0);
    }
  }
  CHECK(nth > 100);
}

TEST_CASE("a thread that cannot be started: run throws, when the ranks that were started have ended") {
  std::string said;
  int failures = 0;
  for (std::int64_t nth = 0;; ++nth) {
    std::atomic<int> begun{0};
    std::atomic<int> ended{0};
    const std::int64_t before = allocations;
    bool enough = false;
    fails_at = before + nth;
    try {
      orrery::threads::run(5, {.deadline = 3600}, [&](auto& on) {
        ++begun;
        struct at_end {
          std::atomic<int>& count;
          ~at_end() { ++count; }
        } const end{ended};
        on.barrier();
      });
      enough = true;
    } catch (const std::system_error& e) {
      fails_at = -1;
      said = e.what();
      const std::string of_rank = "orrery: threads::run: the system refuses the thread of rank ";
      if (said.find("orrery: threads::run: no memory for 5 ranks; use fewer") == 0) {
        CHECK(begun == 0);
      } else {
        CHECK(said.find(of_rank + std::to_string(begun) + " of 5; use fewer ranks") == 0);
        ++failures;
      }
    }
    fails_at = -1;
    CHECK(begun == ended);
    if (enough) break;
  }
  CHECK(failures >= 5);
}
