// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Measures this machine, and writes what `simulate`, `recommend` and `bench_plan` read: a rank a thread.
//
//     bench_machine > here.txt
//     bench_plan here.txt 2 65536
//
// Takes less than two minutes. Each constant is written with its residual, as a comment; one that the samples
// contradict is refused. Then three schedules that were not fitted are measured, and printed beside what is predicted:
// again as comments. `every` compares every topology instead. Bind nothing: each rank needs a core of its own, and is
// refused else.
#include <thread>

#include "orrery/transport/threads.hpp"

#include "common/arguments.hpp"
#include "machine/run.hpp"

int main(int argc, char** argv) {
  const auto cores = static_cast<std::int64_t>(std::thread::hardware_concurrency());
  bench::arguments given{argc, argv,
                         "bench_machine [ranks = cores] [query heads = 4] [key heads = query heads] [head dimension = "
                         "64] [repetitions = 7] [three | every]"};
  const auto ranks = static_cast<int>(given.number("ranks", cores > 1 ? cores : 2, 1, 1024));
  const bench::machine_arguments o = bench::read_rest(given);
  try {
    int status = 0;
    orrery::threads::run(ranks, {.deadline = 600}, [&](auto& world) {
      const int own = bench::calibrate_and_compare<orrery::flash<float>>(world, o, "threads of one process");
      if (world.rank() == 0) status = own;
    });
    return status != 0 || std::fflush(stdout) == 0 ? status : 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_machine: %s\n", e.what());
    return 1;
  }
}
