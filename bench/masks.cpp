// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What operators under masks take and send, beside the schedules that they replace: the tables of times in masks.md.
// Over ranks that are threads of this process; see masks_mpi.cpp for a network.
#include <cstdio>
#include <exception>
#include <string>

#include "orrery/transport/threads.hpp"

#include "masks/run.hpp"

int main(int argc, char** argv) try {
  bench::arguments given{argc, argv, "bench_masks [ranks = 16] [tokens = 1024] [heads = 4] [dim = 128] [calls = 5]"};
  const int ranks = static_cast<int>(given.number("ranks", 16, 1, 256));
  bench::masks_options options;
  options.read(given);
  given.finish();
  if (const std::string wrong = options.wrong_for(ranks); !wrong.empty()) given.refuse(wrong);
  orrery::threads::options how;
  how.deadline = 3600;
  orrery::threads::run(ranks, how, [&](auto& world) { bench::measure_masks(world, options); });
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "bench_masks: %s\n", e.what());
  return 1;
}
