// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Threads of more ranks than there are cores ask for long time slices, and nothing else about them changes.
#include "orrery/host/time_slice.hpp"

#include <cstdint>
#include <thread>

#include <doctest/doctest.h>

#include "orrery/transport/threads.hpp"

#if defined(__linux__)

#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

namespace {

struct scheduling {
  std::uint32_t policy = 0;
  std::int32_t nice = 0;
  std::uint64_t runtime = 0;

  bool operator==(const scheduling&) const = default;
};

/// Of the calling thread, as the kernel's sched_getattr tells it.
scheduling own() {
  std::uint32_t words[14] = {};
  REQUIRE(syscall(SYS_sched_getattr, 0, words, sizeof words, 0) == 0);
  return {words[1], static_cast<std::int32_t>(words[4]), words[6] | std::uint64_t{words[7]} << 32};
}

/// Does this kernel grant what is asked for? A thread of its own tries.
bool grants_time_slices() {
  bool granted = false;
  std::thread{[&] {
    orrery::detail::ask_for_long_time_slices();
    granted = own().runtime == orrery::detail::long_time_slice;
  }}.join();
  return granted;
}

int cores() { return static_cast<int>(std::thread::hardware_concurrency()); }

}  // namespace

TEST_CASE("if ranks exceed the cores, they and their helpers get long time slices") {
  const scheduling before = own();
  scheduling wanted = before;
  if (grants_time_slices()) {
    wanted.runtime = orrery::detail::long_time_slice;
  } else {
    utsname system{};
    uname(&system);
    MESSAGE("Linux " << system.release << " grants no time slices: only that nothing changes is tested");
  }
  orrery::threads::run(cores() + 1, [&](auto& world) {
    const scheduling local = own();
    for (int rank = 0; rank < world.size(); ++rank) {
      world.barrier();
      if (rank == world.rank()) CHECK(local == wanted);
    }
    scheduling of_helper;
    std::thread{[&] { of_helper = own(); }}.join();
    for (int rank = 0; rank < world.size(); ++rank) {
      world.barrier();
      if (rank == world.rank()) CHECK(of_helper == wanted);
    }
  });
  CHECK(own() == before);
}

TEST_CASE("if every thread has a core, nothing is requested") {
  const scheduling before = own();
  orrery::threads::run(1, [&](auto&) { CHECK(own() == before); });
}

TEST_CASE("threads of a rank count: one rank with too many of them is oversubscribed") {
  if (!grants_time_slices()) return;
  orrery::threads::run(1, {.threads_per_rank = cores() + 1},
                       [&](auto&) { CHECK(own().runtime == orrery::detail::long_time_slice); });
}

TEST_CASE("a thread whose priority was lowered keeps it") {
  std::thread{[] {
    REQUIRE(setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), 19) == 0);
    orrery::detail::ask_for_long_time_slices();
    CHECK(own().nice == 19);
  }}.join();
}

#endif
