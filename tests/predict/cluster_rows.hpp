// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "orrery/predict/simulate.hpp"
#include "orrery/topology/named.hpp"
#include "orrery/topology/placed.hpp"
#include "orrery/tune/least_egress.hpp"

/// The measurements of bench/cluster/results.json, this library over TCP between network namespaces that share two
/// cores, and what `simulate` says of them.
namespace cluster {

struct row {
  std::string shape;  // "4x4": nodes x ranks of a node
  std::string link;
  std::string topology;
  std::string placement;
  std::string pass;
  double seconds = 0;
  double compute_alone = 0;
};

/// The value of a name in a line of JSON.
inline std::string value_of(const std::string& line, const std::string& name) {
  const std::string quoted = "\"" + name + "\":";
  const std::size_t at = line.find(quoted);
  if (at == std::string::npos) return "";
  std::size_t begin = at + quoted.size();
  while (begin < line.size() && (line[begin] == ' ' || line[begin] == '"')) ++begin;
  std::size_t end = begin;
  int depth = 0;
  while (end < line.size() && line[end] != '"' && line[end] != '}') {
    depth += line[end] == '<' ? 1 : line[end] == '>' ? -1 : 0;
    if (line[end] == ',' && depth == 0) break;
    ++end;
  }
  return line.substr(begin, end - begin);
}

/// The calls of a link, each once. A forward was measured twice, with both backwards: the shorter time counts, since
/// what disturbs a measurement adds to it.
inline std::vector<row> rows(const std::string& file, const std::string& link) {
  std::vector<row> all;
  std::ifstream stream{file};
  for (std::string line; std::getline(stream, line);) {
    if (line.find("\"seconds_median\"") == std::string::npos || value_of(line, "link") != link) continue;
    const row read{value_of(line, "shape"),
                   link,
                   value_of(line, "topology"),
                   value_of(line, "placement"),
                   value_of(line, "pass"),
                   std::strtod(value_of(line, "seconds_median").c_str(), nullptr),
                   std::strtod(value_of(line, "seconds_compute_alone").c_str(), nullptr)};
    bool known = false;
    for (row& one : all) {
      if (one.shape != read.shape || one.topology != read.topology || one.placement != read.placement ||
          one.pass != read.pass)
        continue;
      known = true;
      one.seconds = read.seconds < one.seconds ? read.seconds : one.seconds;
      one.compute_alone = read.compute_alone < one.compute_alone ? read.compute_alone : one.compute_alone;
    }
    if (!known) all.push_back(read);
  }
  return all;
}

/// One shape of the cluster. The rate of a card is fitted to the three rows of its ring, by relative least squares.
/// What it computes was measured without communication: the tiles are those of `ulysses`, which has one, and what a
/// ring's sixteen steps take more is the host's.
struct shape {
  const char* name;
  int nodes;
  int ranks_per_node;
  double measured_rate;  // bit/s of a link, both ways at once
  double fitted;         // part of it
  double forward;        // seconds of all of a rank's pairs
  double backward;
  double step;

  [[nodiscard]] double seconds(const row& r) const {
    orrery::machine m;
    m.name = name;
    m.levels = {{.name = "node", .count = ranks_per_node, .bandwidth = 2e9, .latency = 20e-6},
                {.name = "cluster",
                 .count = nodes,
                 .bandwidth = fitted * measured_rate / 8,
                 .latency = 100e-6,
                 .shared_by = "node"}};
    m.device.forward.full = 1e12;  // not used: tiles are timed below
    m.device.step = step;
    const orrery::any_topology written = orrery::topology_named(r.topology);
    const orrery::any_topology placed =
        r.placement == "teams"   ? written
        : r.placement == "rings" ? orrery::any_topology{orrery::placed{written, orrery::rings_in_nodes{}}}
                                 : orrery::any_topology{orrery::placed{written, orrery::least_egress{ranks_per_node}}};
    orrery::simulation_options options{.storage_bytes = 4, .as_written = true};
    options.pass = r.pass == "forward"          ? orrery::pass::forward
                   : r.pass == "circulate_keys" ? orrery::pass::circulate_keys
                                                : orrery::pass::circulate_queries;
    const double all = options.pass == orrery::pass::forward ? forward : backward;
    options.tile_seconds = [all](const orrery::tile_work& w) {
      return all * static_cast<double>(w.pairs * w.query_heads) / (256.0 * 16 * 16);
    };
    return simulate(placed, 16, m, {.length = 256, .query_heads = 16, .head_dim = 128}, orrery::full{},
                    orrery::contiguous{}, options)
        .seconds;
  }
};

inline constexpr shape shapes[] = {
    {"2x8", 2, 8, 93.07e6, 1.01, 12.8e-3, 11.5e-3, 1.05e-3},
    {"4x4", 4, 4, 93.08e6, 0.97, 17.0e-3, 15.4e-3, 1.38e-3},
    {"8x2", 8, 2, 90.83e6, 0.75, 15.0e-3, 14.9e-3, 1.34e-3},
};

}  // namespace cluster
