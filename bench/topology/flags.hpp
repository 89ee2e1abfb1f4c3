// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "candidates.hpp"

namespace bench {

struct flags {
  std::int64_t smallest = 1024;
  std::int64_t largest = 4096;
  std::int64_t factor = 2;
  int iterations = 5;
  int warm_up = 1;
  bool check = true;
  int ranks = 8;
  int nodes = 0;
  std::int64_t heads = 8;
  std::int64_t key_heads = 0;
  std::int64_t dim = 64;
  std::string mask = "causal";
  std::string layout;
  std::string dtype;
  std::string kernel;
  std::string json;
  orrery::pass backward = orrery::pass::circulate_keys;
  std::vector<orrery::pass> passes{orrery::pass::forward};
  std::vector<candidate> topologies;
  std::vector<std::string> placements{"teams"};
  bool help = false;
};

inline const char* usage() {
  return R"(bench_topology: what each topology costs and gives, over ranks that are threads of this process
(bench_topology_mpi: over processes, as many as mpirun starts; bench_topology_cuda: over streams of CUDA devices).

  -b, --min-tokens N       smallest sequence, in tokens of the whole world; K and M mean 1024 and 1024*1024 (1K)
  -e, --max-tokens N       largest sequence, in tokens (4K)
  -f, --factor N           each sequence is so many times as long as the one before (2)
  -n, --iterations N       timed calls; the median and the 99th percentile are reported (5)
  -w, --warm-up N          calls before them (1)
  -c, --check 0|1          compare with a run on one rank, and fail if an error is too large (1)
  -r, --ranks N            ranks (8)
      --topology A,B,...   these only, such as ring,usp<2> (all that the ranks and heads admit)
      --pass P             forward, backward or both (forward)
      --circulate SIDE     keys or queries: what travels in the backward (keys)
      --mask M             full or causal (causal)
      --layout L           contiguous, zigzag or striped (zigzag if causal, else contiguous)
      --heads N            query heads (8)
      --key-heads N        key heads, a divisor of the query heads (as many)
      --dim N              of a head, up to 256; on CUDA devices up to 128 (64)
      --nodes N            nodes that share the ranks evenly, neighbours together; for node egress and placements
                           (2 if even)
      --placement A,B,...  teams (teams in nodes, as topologies are written), rings (rings in nodes) or least (least
                           egress of a node); what is the same schedule is run once (teams)
      --dtype T            float or double (float); on CUDA devices bfloat16
      --kernel NAME        on CUDA devices: device_flash
      --devices N          on CUDA devices: how many of them the ranks share, in turn (1)
      --json FILE          write the same rows there
  -h, --help               this text
)";
}

namespace flag_values {

[[noreturn]] inline void refuse(std::string_view flag, std::string_view value, const std::string& expected) {
  throw std::invalid_argument{std::string{flag} + " is \"" + std::string{value} + "\", expected " + expected};
}

inline std::int64_t number(std::string_view flag, std::string_view text, std::int64_t least, std::int64_t most) {
  std::string_view digits = text;
  std::int64_t unit = 1;
  if (!digits.empty() && (digits.back() == 'K' || digits.back() == 'k')) unit = 1024;
  if (!digits.empty() && (digits.back() == 'M' || digits.back() == 'm')) unit = 1024 * 1024;
  if (unit > 1) digits.remove_suffix(1);
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  const bool read = error == std::errc{} && end == digits.data() + digits.size();
  if (!read || value > most / unit || value * unit < least) {
    refuse(flag, text, "a number from " + std::to_string(least) + " to " + std::to_string(most));
  }
  return value * unit;
}

inline int small(std::string_view flag, std::string_view text, int least, int most) {
  return static_cast<int>(number(flag, text, least, most));
}

inline std::string one_of(std::string_view flag, std::string_view text, const std::vector<std::string>& choices) {
  std::string expected;
  for (const std::string& choice : choices) {
    if (choice == text) return choice;
    expected += (expected.empty() ? "" : choice == choices.back() ? " or " : ", ") + choice;
  }
  refuse(flag, text, expected);
}

/// Cuts at the commas outside angle brackets.
inline std::vector<std::string> names(std::string_view text) {
  std::vector<std::string> all(1);
  int depth = 0;
  for (const char c : text) {
    depth += c == '<' ? 1 : c == '>' ? -1 : 0;
    if (c == ',' && depth == 0) {
      all.emplace_back();
    } else if (c != ' ') {
      all.back() += c;
    }
  }
  return all;
}

/// concentric<2> is concentric<2,1>.
inline bool is_called(const candidate& c, const std::string& name) {
  if (c.title() == name) return true;
  return name.starts_with("concentric<") && name.back() == '>' && c.title() == name.substr(0, name.size() - 1) + ",1>";
}

/// Each of these in all placements, without those that are an earlier placement of the same topology.
inline std::vector<candidate> placed_all(const std::vector<candidate>& topologies, const flags& f,
                                         const std::vector<orrery::pass>& passes) {
  std::vector<candidate> all;
  for (const candidate& topology : topologies) {
    const std::size_t first = all.size();
    for (const std::string& placement : f.placements) {
      candidate here = topology;
      here.placement = placement;
      here.ranks_per_node = f.ranks / f.nodes;
      here.query_heads_per_key_head = static_cast<double>(f.heads) / static_cast<double>(f.key_heads);
      here.sum_width = f.dtype == "bfloat16" ? 2 : 1;
      bool known = false;
      for (std::size_t i = first; i < all.size(); ++i) known = known || same_schedule(all[i], here, f.ranks, passes);
      if (!known) all.push_back(here);
    }
  }
  return all;
}

}  // namespace flag_values

/// What the ranks of a program can do.
struct abilities {
  std::vector<std::string> dtypes{"float", "double"};
  std::vector<std::string> kernels{"flash"};
  std::int64_t largest_dim = 256;
};

/// Throws `std::invalid_argument` with a message. If ranks have been started already, there are so many.
inline flags read_flags(const std::vector<std::string>& arguments, int ranks_started = 0, const abilities& can = {}) {
  using namespace flag_values;
  flags f;
  f.dtype = can.dtypes[0];
  f.kernel = can.kernels[0];
  if (ranks_started > 0) f.ranks = ranks_started;
  std::string passes = "forward";
  std::string topologies;
  bool chosen = false;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    std::string flag = arguments[i];
    std::string value;
    if (flag == "-h" || flag == "--help") {
      f.help = true;
      return f;
    }
    if (const std::size_t equals = flag.find('='); flag.starts_with("--") && equals != std::string::npos) {
      value = flag.substr(equals + 1);
      flag.resize(equals);
    } else {
      if (!flag.starts_with('-')) throw std::invalid_argument{"\"" + flag + "\" is no flag: see --help"};
      if (++i < arguments.size()) value = arguments[i];  // else it is empty, which no flag accepts
    }
    constexpr std::int64_t longest = std::int64_t{1} << 40;
    if (flag == "-b" || flag == "--min-tokens") {
      f.smallest = number(flag, value, 1, longest);
    } else if (flag == "-e" || flag == "--max-tokens") {
      f.largest = number(flag, value, 1, longest);
    } else if (flag == "-f" || flag == "--factor") {
      f.factor = number(flag, value, 2, longest);
    } else if (flag == "-n" || flag == "--iterations") {
      f.iterations = small(flag, value, 1, 1'000'000);
    } else if (flag == "-w" || flag == "--warm-up") {
      f.warm_up = small(flag, value, 0, 1'000'000);
    } else if (flag == "-c" || flag == "--check") {
      f.check = one_of(flag, value, {"0", "1"}) == "1";
    } else if (flag == "-r" || flag == "--ranks") {
      f.ranks = small(flag, value, 1, 1024);
    } else if (flag == "--topology") {
      topologies = value;
      chosen = true;
    } else if (flag == "--pass") {
      passes = one_of(flag, value, {"forward", "backward", "both"});
    } else if (flag == "--circulate") {
      f.backward = one_of(flag, value, {"keys", "queries"}) == "keys" ? orrery::pass::circulate_keys
                                                                      : orrery::pass::circulate_queries;
    } else if (flag == "--mask") {
      f.mask = one_of(flag, value, {"full", "causal"});
    } else if (flag == "--layout") {
      f.layout = one_of(flag, value, {"contiguous", "zigzag", "striped"});
    } else if (flag == "--heads") {
      f.heads = number(flag, value, 1, 1024);
    } else if (flag == "--key-heads") {
      f.key_heads = number(flag, value, 1, 1024);
    } else if (flag == "--dim") {
      f.dim = number(flag, value, 1, can.largest_dim);
    } else if (flag == "--nodes") {
      f.nodes = small(flag, value, 1, 1024);
    } else if (flag == "--placement") {
      f.placements = names(value);
      for (const std::string& one : f.placements) static_cast<void>(one_of(flag, one, {"teams", "rings", "least"}));
    } else if (flag == "--dtype") {
      f.dtype = one_of(flag, value, can.dtypes);
    } else if (flag == "--kernel") {
      f.kernel = one_of(flag, value, can.kernels);
    } else if (flag == "--json") {
      if (value.empty()) refuse(flag, value, "the name of a file");
      f.json = value;
    } else {
      throw std::invalid_argument{flag + " is no flag: see --help"};
    }
  }

  if (ranks_started > 0 && f.ranks != ranks_started) {
    throw std::invalid_argument{"--ranks is " + std::to_string(f.ranks) + ", but there are " +
                                std::to_string(ranks_started) + " processes: leave it out"};
  }
  if (f.largest < f.smallest) {
    throw std::invalid_argument{"-e is " + std::to_string(f.largest) + ", expected at least -b, " +
                                std::to_string(f.smallest)};
  }
  if (f.key_heads == 0) f.key_heads = f.heads;
  if (f.heads % f.key_heads != 0) {
    throw std::invalid_argument{"--key-heads is " + std::to_string(f.key_heads) + ", expected a divisor of --heads, " +
                                std::to_string(f.heads)};
  }
  if (f.nodes == 0) f.nodes = f.ranks % 2 == 0 ? 2 : 1;
  if (f.ranks % f.nodes != 0) {
    throw std::invalid_argument{"--nodes is " + std::to_string(f.nodes) + ", expected a divisor of --ranks, " +
                                std::to_string(f.ranks)};
  }
  if (f.layout.empty()) f.layout = f.mask == "causal" ? "zigzag" : "contiguous";
  f.passes.clear();
  if (passes != "backward") f.passes.push_back(orrery::pass::forward);
  if (passes != "forward") f.passes.push_back(f.backward);

  // An operator is made for both passes.
  const std::vector<orrery::pass> both{orrery::pass::forward, f.backward};
  if (!chosen) {
    f.topologies = placed_all(admitted(f.ranks, static_cast<int>(f.heads), both), f, both);
    return f;
  }
  for (const std::string& name : names(topologies)) {
    std::string known;
    bool found = false;
    for (const candidate& c : all_candidates()) {
      known += (known.empty() ? "" : ", ") + c.title();
      if (!is_called(c, name)) continue;
      found = true;
      const std::string reason = refusal(c, f.ranks, static_cast<int>(f.heads), both);
      if (!reason.empty()) throw std::invalid_argument{"--topology " + c.title() + " " + reason};
      f.topologies.push_back(c);
    }
    if (!found) throw std::invalid_argument{"--topology does not know \"" + name + "\", only " + known};
  }
  f.topologies = placed_all(f.topologies, f, both);
  return f;
}

}  // namespace bench
