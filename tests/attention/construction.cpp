// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What constructing an operator does once.
#include <atomic>
#include <memory>

#include <doctest/doctest.h>

#include "orrery/attention.hpp"
#include "orrery/kernel/reference.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/threads.hpp"

namespace {

/// A ring that counts the programs that it writes.
struct counting_ring {
  static inline std::atomic<int> written = 0;

  [[nodiscard]] static orrery::program program(int rank, int world, orrery::pass p) {
    ++written;
    return orrery::ring::program(rank, world, p);
  }
};

/// A reference that plans, and counts the tiles that it is told of.
struct planning : orrery::reference<double> {
  static inline std::atomic<int> expected = 0;

  template <class Memory>
  struct planned : orrery::reference<double> {
    template <class... Arguments>
    static void expect_forward(const Arguments&...) {
      ++expected;
    }
    template <class... Arguments>
    static void expect_backward(const Arguments&...) {
      ++expected;
    }
    static void take_memory() {}
    static void begin() {}
    static std::int64_t bytes() { return 0; }
  };
};

constexpr int ranks = 8;
constexpr int passes = 2;

/// Programs that are written while 8 ranks that are threads construct an operator.
template <class Kernel>
int programs_written() {
  const int before = counting_ring::written;
  orrery::threads::run(ranks, [](auto& world) {
    const orrery::attention<counting_ring, Kernel> attend{world, {.length = 32, .query_heads = 1, .head_dim = 4}};
  });
  return counting_ring::written - before;
}

}  // namespace

TEST_CASE("ranks of one process share the proof of their schedule, and write their own programs once") {
  constexpr int proof = passes * ranks;
  constexpr int own = passes * ranks;
  CHECK(programs_written<orrery::reference<double>>() == proof + own);
  CHECK(programs_written<orrery::reference<double>>() == own);  // another operator of the same topology
  CHECK(programs_written<planning>() == own);
  CHECK(planning::expected == passes * ranks * ranks);
}
