// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What masks leave to send: shard units of a forward and of a backward whose keys circulate, of schedules for every
// pair and of those that an operator runs for the mask and the layout. The tables of bench/masks.md.
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/attention/relation_of.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/window.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/tune/pack.hpp"
#include "orrery/verify/detail/specialize.hpp"

#include "support/document_lengths.hpp"

namespace {

using orrery::any_topology;
using orrery::pass;
using orrery::detail::layout_source;

void print(const orrery::traffic_report& costs, int world) {
  std::printf(" %.2f / %.2f |", costs.total / world, costs.sent);
}

/// A row of the table: average / busiest rank, forward and backward, and the forward's steps.
template <class Mask>
void row(const std::string& name, const any_topology& topology, int world, const Mask& mask,
         const layout_source& layout, std::int64_t length, int chunks) {
  orrery::schedule::list<orrery::segments> shards;
  if (const std::string wrong = layout.deal(world, length, chunks, shards); !wrong.empty()) {
    throw std::invalid_argument{layout.name() + " " + wrong};
  }
  const orrery::schedule::relation visible = orrery::detail::relation_of(mask, shards, shards, chunks);
  std::printf("| %s | %d |", name.c_str(), chunks);
  int steps = 0;
  for (const pass p : {pass::forward, pass::circulate_keys}) {
    const orrery::detail::specialized_schedule made = orrery::detail::specialize(topology, world, p, visible);
    if (!made.found.ok()) throw std::logic_error{made.found.message()};
    const orrery::traffic_report costs = traffic(made.programs, orrery::weights_of(p));
    print(costs, world);
    if (p == pass::forward) steps = costs.steps;
  }
  std::printf(" %d |\n", steps);
}

void heading(const std::string& what) {
  std::printf("\n%s\n\n| schedule | chunks | forward | backward | steps |\n| --- | --- | --- | --- | --- |\n",
              what.c_str());
}

void every_pair(const std::string& name, const any_topology& topology, int world) {
  std::printf("| %s, every pair | 1 |", name.c_str());
  print(orrery::traffic(topology, world), world);
  print(orrery::traffic(topology, world, pass::circulate_keys), world);
  std::printf(" %d |\n", orrery::traffic(topology, world).steps);
}

void print_tables() {
  const orrery::contiguous contiguous;
  const orrery::zigzag zigzag;
  for (const int world : {16, 64}) {
    const std::int64_t length = std::int64_t{world} * 4096;
    heading("Causal, " + std::to_string(world) + " ranks");
    every_pair("`ring`", orrery::ring{}, world);
    row("`ring`, contiguous", orrery::ring{}, world, orrery::causal{}, layout_source{contiguous}, length, 1);
    row("`ring`, zigzag", orrery::ring{}, world, orrery::causal{}, layout_source{zigzag}, length, 2);
    row("`half_ring`, contiguous", orrery::half_ring{}, world, orrery::causal{}, layout_source{contiguous}, length, 1);
    every_pair("`concentric<4>`", orrery::concentric<4>{}, world);
    row("`concentric<4>`, zigzag", orrery::concentric<4>{}, world, orrery::causal{}, layout_source{zigzag}, length, 2);
  }
  heading("A causal window of 4096 in 1M tokens, 64 ranks");
  const auto window = orrery::causal{} & orrery::window{.left = 4095};
  every_pair("`ring`", orrery::ring{}, 64);
  for (const int chunks : {1, 4, 16}) {
    row("`ring`, contiguous", orrery::ring{}, 64, window, layout_source{contiguous}, 1 << 20, chunks);
  }
  for (const auto& [world, length] : {std::pair{16, std::int64_t{1} << 18}, std::pair{64, std::int64_t{1} << 20}}) {
    heading("Packed documents, causal, " + std::to_string(length) + " tokens, " + std::to_string(world) +
            " ranks (one batch)");
    const std::vector<std::int64_t> lengths = document_lengths::of(length, 0);
    const auto mask = orrery::documents{lengths} & orrery::causal{};
    every_pair("`ring`", orrery::ring{}, world);
    row("`ring`, contiguous", orrery::ring{}, world, mask, layout_source{contiguous}, length, 8);
    row("`ring`, zigzag", orrery::ring{}, world, mask, layout_source{zigzag}, length, 2);
    const orrery::packed_plan plan = orrery::pack(lengths, world);
    row("`pack`, contiguous", orrery::precomputed{"packed", plan.work}, world, mask, layout_source{contiguous}, length,
        plan.work.chunks);
  }
}

}  // namespace

int main(int argc, char**) try {
  if (argc > 1) {
    std::fputs("usage: bench_attention_masks\nPrints the tables of bench/masks.md.\n", stderr);
    return 2;
  }
  print_tables();
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "bench_attention_masks: %s\n", e.what());
  return 1;
}
