// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Which schedule should my cluster run? Describes the machine in four lines, and ranks the schedules for a training
// step of attention. Nothing runs: the times are predicted.

#include <fstream>
#include <iostream>

#include <orrery/mask/causal.hpp>
#include <orrery/predict/machine_text.hpp>
#include <orrery/predict/timeline_svg.hpp>
#include <orrery/tune/recommend.hpp>

int main(int argc, char** argv) {
  const orrery::machine cluster = orrery::read_machine(R"(
    machine  4 nodes of 8 H100 that share a card
    like     h100
    level    cluster  4 nodes  50 GB/s  20 us  shared by node
  )");
  const orrery::attention_shape shape{.length = 131072, .query_heads = 32, .key_heads = 8, .head_dim = 128};
  const auto found = orrery::recommend(32, cluster, shape, orrery::causal{}, orrery::zigzag{});
  std::cout << to_string(found, 8);
  if (argc < 2) return 0;

  // which_schedule FILE.svg: the forward of the best, over time.
  const auto best = orrery::simulate(found.best().topology, 32, cluster, shape, orrery::causal{}, orrery::zigzag{},
                                     {.with_timeline = true});
  std::ofstream file{argv[1]};
  file << orrery::timeline_svg(best);
  return file ? 0 : 1;
}
