// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Which schedule a cluster should run, by length of the sequence: the table of `recommend` for a preset or a file that
// describes a machine. Nothing runs: the times are predicted.
//
//     bench_plan h100 64 131072 1048576 > bench/plan.md

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/layout/layout.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/predict/machine_text.hpp"
#include "orrery/tune/recommend.hpp"

namespace {

[[noreturn]] void usage() {
  std::cerr
      << "usage: bench_plan MACHINE RANKS TOKENS...\nMACHINE is a preset (a100, h100, h800, h200, b200, cpu-100gbe, "
         "cpu-10gbe) or a file that orrery::read_machine reads; causal attention, 32 query heads and 4 key heads of "
         "128, zigzag\n";
  std::exit(2);
}

std::int64_t number(const char* text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text, text + std::strlen(text), value);
  if (error != std::errc{} || *end != '\0' || value < 1) usage();
  return value;
}

orrery::machine machine_of(const char* name) {
  std::ifstream file{name};
  if (!file) return orrery::machine_named(name);
  std::ostringstream text;
  text << file.rdbuf();
  return orrery::read_machine(text.str());
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 4) usage();
  const auto ranks = static_cast<int>(number(argv[2]));
  const orrery::machine m = machine_of(argv[1]);
  std::cout
      << "# Which schedule\n\nWritten by `bench_plan " << argv[1] << " " << ranks
      << " ...`: predicted seconds of a forward and a backward of causal attention, 32 query heads and 4 key heads of "
         "128, zigzag.\nA first column of 1.00 is the recommendation; of schedules within 3 % of the fastest, the one "
         "with the least memory.\n";
  for (int i = 3; i < argc; ++i) {
    const orrery::attention_shape shape{.length = number(argv[i]), .query_heads = 32, .key_heads = 4, .head_dim = 128};
    const auto found = orrery::recommend(ranks, m, shape, orrery::causal{}, orrery::zigzag{});
    std::cout << "\n## " << ranks << " ranks of " << m.name << ", " << shape.length << " tokens\n\n```text\n"
              << to_string(found, 10) << "```\n";
  }
  return std::cout ? 0 : 1;
} catch (const std::invalid_argument& e) {
  std::cerr << e.what() << "\n";
  return 2;
}
