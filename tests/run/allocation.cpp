// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Calls allocate nothing. This file replaces the operators new and delete of its executable.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/faulty.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/transport/traced.hpp"

#include "conformance.hpp"
#include "run/pairs.hpp"
#include "topologies.hpp"

namespace {

/// Of this thread, which is one rank.
thread_local std::int64_t allocations = 0;
thread_local std::int64_t plan_bytes = 0;  // of memory aligned as only plans' buffers are

void* take(std::size_t bytes, std::size_t alignment) {
  ++allocations;
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
      if (orrery::refuses(Topology{}, world, circulate) != nullptr) continue;
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
        conformance::rank_tensors<Kernel> mine{p, attend.query_positions(), attend.key_positions(), {}};
        mine.forward(attend);
        mine.backward(attend);
        const std::int64_t before = allocations;
        for (int call = 0; call < 2; ++call) {
          mine.forward(attend);
          mine.backward(attend);
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
  const orrery::host_memory aligned{100};
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
    orrery::faulty unlucky{on, {orrery::fails(1, {100, 0})}};
    orrery::traced recorder{unlucky, {.events = 20}};
    const orrery::program steps = orrery::program_of(orrery::ring{}, on.rank(), 4, orrery::pass::forward);
    pairs::work mine{{40, 4}, {44, 4}, steps};
    orrery::executor run{recorder, steps, mine};
    run.run();
    const std::int64_t before = allocations;
    for (int call = 0; call < 5; ++call) run.run();
    if (allocations != before) throw std::logic_error{std::to_string(allocations - before) + " allocations"};
  }));
}
