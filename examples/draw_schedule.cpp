// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Draws a schedule: who sends to whom, which rank computes which pair, its predicted timeline, and a page for a browser
// that steps through it.
//
//     draw_schedule "concentric<2,2>" 16 4 DIRECTORY      a topology, its ranks, ranks of a node, and where to write

#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

#include <orrery/draw/coverage_svg.hpp>
#include <orrery/draw/schedule_html.hpp>
#include <orrery/draw/traffic_svg.hpp>
#include <orrery/orrery.hpp>
#include <orrery/predict/machine_text.hpp>
#include <orrery/predict/simulate.hpp>
#include <orrery/predict/timeline_svg.hpp>
#include <orrery/topology/named.hpp>

int main(int argc, char** argv) try {
  const std::string name = argc > 1 ? argv[1] : "concentric<2,2>";
  const int world = argc > 2 ? std::atoi(argv[2]) : 16;
  const int ranks_per_node = argc > 3 ? std::atoi(argv[3]) : 4;
  const std::filesystem::path directory = argc > 4 ? argv[4] : ".";
  if (world < 1 || ranks_per_node < 1) throw std::invalid_argument{"expected ranks and ranks of a node of at least 1"};

  const orrery::any_topology topology = orrery::topology_named(name);
  const orrery::attention_shape shape{.length = std::int64_t{4096} * world, .query_heads = 64, .head_dim = 128};
  if (const char* reason = unsupported_reason(topology, world)) throw std::invalid_argument{reason};
  const int slices = slices_of(topology, world);
  const auto bytes = orrery::attention_sizes::of<orrery::flash<orrery::bfloat16>>(shape, orrery::pass::forward, world,
                                                                                  orrery::zigzag{}, slices);

  orrery::machine machine = orrery::machine_named("h100");
  machine.levels[0].count = ranks_per_node;
  machine.levels[1].count = (world + ranks_per_node - 1) / ranks_per_node;

  const auto programs = programs_of(topology, world);
  const orrery::picture_options options{.title = name + " over " + std::to_string(world) + " ranks",
                                        .ranks_per_node = ranks_per_node};
  const auto write = [&](const char* file, const std::string& text) {
    std::ofstream out{directory / file};
    if (!(out << text << std::flush)) throw std::runtime_error{"cannot write " + (directory / file).string()};
  };
  // First what may refuse: half of the pictures would be of no use.
  const auto timeline = orrery::timeline_svg(
      orrery::simulate(topology, world, machine, shape, orrery::causal{}, orrery::zigzag{}, {.with_timeline = true}));
  write("traffic.svg", orrery::traffic_svg(programs, bytes, options));
  write("coverage.svg", orrery::coverage_svg(programs, options));
  write("schedule.html", orrery::schedule_html(programs, bytes, options));
  write("timeline.svg", timeline);
  std::cout << "traffic.svg, coverage.svg, timeline.svg, schedule.html\n";
  return std::cout ? 0 : 1;
} catch (const std::exception& e) {
  std::cerr << e.what() << "\nusage: draw_schedule [TOPOLOGY [RANKS [RANKS_OF_A_NODE [DIRECTORY]]]]\n";
  return 2;
}
