// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What each topology costs and gives on this machine: one row for each topology and sequence length. See --help.
#include "topology/host_ranks.hpp"
#include "topology/run.hpp"

namespace {

struct thread_ranks : bench::host_ranks {
  static constexpr const char* transport = "threads";
  static constexpr const char* described = "threads of one process";

  static int count() { return 0; }
  static bool first() { return true; }
  template <class Body>
  static void run(int ranks, const Body& body) {
    orrery::threads::options how;
    how.deadline = 3600;
    orrery::threads::run(ranks, how, body);
  }
};

}  // namespace

int main(int argc, char** argv) {
  try {
    return bench::run(thread_ranks{}, {argv + 1, argv + argc});
  } catch (const std::exception& e) {
    std::cerr << "bench_topology: " << e.what() << '\n';
    return 1;
  }
}
