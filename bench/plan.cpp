// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Which schedule a cluster should run, by length of the sequence: the table of `recommend` for a preset or a file that
// describes a machine. Nothing runs: the times are predicted. See `usage`.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "orrery/layout/named.hpp"
#include "orrery/mask/named.hpp"
#include "orrery/predict/machine_text.hpp"
#include "orrery/predict/timeline_svg.hpp"
#include "orrery/predict/trace.hpp"
#include "orrery/tune/estimate_schedules.hpp"
#include "orrery/tune/recommend.hpp"

#include "plan/table.hpp"
#include "plan/wins_map.hpp"

namespace {

constexpr const char* usage_text = R"(usage: bench_plan MACHINE RANKS TOKENS...
       bench_plan --machine MACHINE --ranks N[,N...] --tokens N[,N...] [FLAGS]
MACHINE is a preset (a100, h100, h800, h200, b200, cpu-100gbe, cpu-10gbe) or a file that orrery::read_machine reads; its
outermost level is made as large as the ranks need.
  --query-heads N  --key-heads N  --head-dim N   the model: 32, 4 and 128
  --mask NAME  --layout NAME                     causal and zigzag
  --finalists N   simulates the N schedules that a quick estimate finds fastest, the smallest of those that
                  tie with the first, and ring (8); 0: all
  --rows N        of each table (10)
  --svg FILE  --trace FILE  --json FILE          of the last table: the forward of its first row as a picture, and for
                                                 Perfetto; all rows as JSON
  --map FILE      a picture of which topology wins, estimated, over tokens of a rank and ranks
)";

[[noreturn]] void usage() {
  std::cerr << usage_text;
  std::exit(2);
}

std::int64_t number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0) usage();
  return value;
}
std::vector<std::int64_t> numbers(std::string_view text) {
  std::vector<std::int64_t> all;
  while (true) {
    const std::size_t comma = text.find(',');
    all.push_back(number(text.substr(0, comma)));
    if (all.back() < 1) usage();
    if (comma == text.npos) return all;
    text.remove_prefix(comma + 1);
  }
}

/// The machine, with as many groups of its outermost level as the ranks need.
orrery::machine machine_of(const std::string& name, std::int64_t ranks) {
  std::ifstream file{name};
  orrery::machine m;
  if (file) {
    std::ostringstream text;
    text << file.rdbuf();
    m = orrery::read_machine(text.str());
  } else {
    m = orrery::machine_named(name);
  }
  const std::int64_t group = m.ranks_of_level(static_cast<int>(m.levels.size()) - 2);
  if (ranks > m.ranks() && ranks < (1 << 20)) m.levels.back().count = static_cast<int>((ranks + group - 1) / group);
  return m;
}

void write(const std::string& file, const std::string& text) {
  std::ofstream out{file};
  if (!(out << text << std::flush)) throw std::runtime_error{"cannot write " + file};
}

struct request {
  std::map<std::string, std::string> flags{{"--machine", ""},       {"--ranks", ""},        {"--tokens", ""},
                                           {"--query-heads", "32"}, {"--key-heads", "4"},   {"--head-dim", "128"},
                                           {"--mask", "causal"},    {"--layout", "zigzag"}, {"--finalists", "8"},
                                           {"--rows", "10"},        {"--svg", ""},          {"--trace", ""},
                                           {"--json", ""},          {"--map", ""}};

  request(int argc, char** argv) {
    std::vector<std::string> positional;
    for (int i = 1; i < argc; ++i) {
      const std::string one = argv[i];
      if (one.rfind("--", 0) != 0) {
        positional.push_back(one);
      } else if (flags.count(one) == 0 || i + 1 == argc) {
        std::cerr << "bench_plan: " << one << (flags.count(one) == 0 ? " is no flag\n" : " needs a value\n");
        usage();
      } else {
        flags[one] = argv[++i];
      }
    }
    if (!positional.empty()) {
      if (positional.size() < 3 || !flags["--machine"].empty()) usage();
      flags["--machine"] = positional[0];
      flags["--ranks"] = positional[1];
      for (std::size_t i = 2; i < positional.size(); ++i) flags["--tokens"] += (i > 2 ? "," : "") + positional[i];
    }
    if (flags["--machine"].empty() || (flags["--map"].empty() && flags["--tokens"].empty())) usage();
    if (!flags["--tokens"].empty() && flags["--ranks"].empty()) usage();
  }
  [[nodiscard]] const std::string& operator[](const std::string& flag) const { return flags.at(flag); }
  [[nodiscard]] std::int64_t count(const std::string& flag) const { return number(flags.at(flag)); }
  [[nodiscard]] orrery::attention_shape shape(std::int64_t tokens) const {
    return {.length = tokens,
            .query_heads = count("--query-heads"),
            .key_heads = count("--key-heads"),
            .head_dim = count("--head-dim")};
  }
};

/// One table: the schedules for some ranks and tokens.
void plan(const request& asked, std::int64_t ranks, std::int64_t tokens) {
  const orrery::machine m = machine_of(asked["--machine"], ranks);
  const orrery::any_mask mask = orrery::mask_named(asked["--mask"]);
  const orrery::any_layout layout = orrery::layout_named(asked["--layout"]);
  const orrery::attention_shape shape = asked.shape(tokens);
  const auto world = static_cast<int>((std::min)(ranks, std::int64_t{1} << 20));
  std::vector<orrery::any_topology> finalists;
  std::size_t left_out = 0;
  if (asked.count("--finalists") > 0) {
    const std::vector<orrery::schedule_estimate> all = orrery::estimate_schedules(world, m, shape, mask);
    const orrery::schedule_estimate* smallest = nullptr;  // of those that tie with the fastest
    for (const orrery::schedule_estimate& one : all) {
      if (one.seconds > 1.03 * all[0].seconds) break;
      if (smallest == nullptr || one.peak_bytes < smallest->peak_bytes) smallest = &one;
    }
    for (const orrery::schedule_estimate& one : all) {
      if (static_cast<std::int64_t>(finalists.size()) < asked.count("--finalists") || &one == smallest ||
          one.topology.name() == "ring") {
        finalists.push_back(one.topology);
      } else {
        ++left_out;
      }
    }
  }
  const orrery::recommendation found = orrery::recommend(world, m, shape, mask, layout, {}, finalists);
  std::cout << "\n## " << ranks << " ranks of " << m.name << ", " << tokens << " tokens\n\n"
            << plan_table(found, shape, mask, static_cast<std::size_t>(asked.count("--rows")));
  if (left_out > 0) std::cout << "\n" << left_out << " others are slower by a quick estimate.\n";
  std::cout << std::flush;
  if (!asked["--json"].empty()) write(asked["--json"], plan_json(found, shape, mask, m.name));
  if (asked["--svg"].empty() && asked["--trace"].empty()) return;
  const orrery::prediction best =
      orrery::simulate(found.best().topology, world, m, shape, mask, layout, {.with_timeline = true});
  if (!asked["--svg"].empty()) write(asked["--svg"], orrery::timeline_svg(best));
  if (!asked["--trace"].empty()) write(asked["--trace"], orrery::chrome_trace(best));
}

}  // namespace

int main(int argc, char** argv) try {
  const request asked{argc, argv};
  if (!asked["--tokens"].empty()) {
    std::cout
        << "# Which schedule\n\nWritten by `bench_plan`: predicted times of a forward and a backward of attention ("
        << asked["--mask"] << ", " << asked["--query-heads"] << " query heads and " << asked["--key-heads"]
        << " key heads of " << asked["--head-dim"] << ", " << asked["--layout"]
        << "), one layer.\nThe first row is the recommendation: of schedules within 3 % of the fastest, the one "
           "with the least memory. *Volume* is what the forward sends,\nover the least that any schedule which "
           "spreads the visible pairs evenly must.\n";
    for (const std::int64_t ranks : numbers(asked["--ranks"])) {
      for (const std::int64_t tokens : numbers(asked["--tokens"])) plan(asked, ranks, tokens);
    }
  }
  if (!asked["--map"].empty()) {
    std::vector<std::int64_t> ranks{8, 16, 32, 64, 128, 256, 512};
    if (asked["--tokens"].empty() && !asked["--ranks"].empty()) ranks = numbers(asked["--ranks"]);
    wins_map map{"Which schedule wins: " + asked["--machine"] + ", " + asked["--mask"] + ", " + asked["--query-heads"] +
                 " query heads, " + asked["--key-heads"] + " key heads of " + asked["--head-dim"]};
    for (const std::int64_t world : ranks) {
      if (world > 1 << 20) {
        throw std::invalid_argument{"bench_plan: --ranks is " + std::to_string(world) + ", expected at most 1048576"};
      }
      const orrery::machine m = machine_of(asked["--machine"], world);
      for (std::int64_t tokens = 256; tokens <= 65536; tokens *= 2) {
        const auto all = orrery::estimate_schedules(static_cast<int>(world), m, asked.shape(world * tokens),
                                                    orrery::mask_named(asked["--mask"]));
        map.add(world, tokens, all);
      }
    }
    write(asked["--map"], map.svg());
  }
  return std::cout ? 0 : 1;
} catch (const std::exception& e) {
  std::cerr << e.what() << "\n";
  return 2;
}
