// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The flash kernel for comparisons with programs in other languages, call by call in one run: reads lines such as
// "forward 128 causal" and answers with the seconds and the processor seconds of one call (see pytorch.py).
//
//   on_request [sequence = 4096] [heads = 8] [threads = 2]
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <memory>
#include <string>

#include "orrery/orrery.hpp"

#include "figures.hpp"
#include "problem.hpp"

int main(int argc, char** argv) {
  using kernel = orrery::flash<float>;
  using bench::clock_type;
  orrery::attention_shape shape;
  shape.length = argc > 1 ? std::atoll(argv[1]) : 4096;
  shape.query_heads = argc > 2 ? std::atoll(argv[2]) : 8;
  orrery::thread_team team{argc > 3 ? std::atoi(argv[3]) : 2};
  std::map<long long, std::unique_ptr<bench::shard<float>>> problems;
  char pass[16], mask[16];
  long long dim = 0;
  while (std::scanf("%15s %lld %15s", pass, &dim, mask) == 3) {
    std::unique_ptr<bench::shard<float>>& problem = problems[dim];
    if (problem == nullptr) {
      shape.head_dim = dim;
      problem = std::make_unique<bench::shard<float>>(shape, orrery::contiguous::shard(0, 1, shape.length));
    }
    const orrery::pass p = pass[0] == 'f' ? orrery::pass::forward : orrery::pass::circulate_keys;
    const auto begin = clock_type::now();
    const std::clock_t cpu_begin = std::clock();
    if (mask[0] == 'c') {
      bench::call_kernel<kernel>(*problem, p, orrery::causal{}, {.team = &team});
    } else {
      bench::call_kernel<kernel>(*problem, p, orrery::full{}, {.team = &team});
    }
    const std::clock_t cpu = std::clock() - cpu_begin;
    std::printf("%.9f %.9f\n", bench::seconds_between(begin, clock_type::now()),
                static_cast<double>(cpu) / CLOCKS_PER_SEC);
    std::fflush(stdout);
  }
}
