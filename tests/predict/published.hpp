// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "orrery/layout/layout.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/named.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/simulate.hpp"
#include "orrery/topology/named.hpp"

/// Published measurements of attention over several GPUs, and what `simulate` says of them. The constants of each table
/// stand here; which of them were fitted to rows of the table, `fitted` says.
namespace published {

struct row {
  std::string label;
  double observed = 0;   // in the table's unit
  double predicted = 0;  // likewise
};

struct table {
  std::string name;
  std::string source;
  std::string unit;
  std::string constants;
  std::string fitted;  // "nothing", or what
  std::vector<row> rows;
};

/// How well a table is predicted.
struct accuracy {
  int rows = 0;
  double mean = 0;   // of |predicted / observed - 1|
  double worst = 0;  // likewise
  int pairs = 0;     // of rows that differ by more than 2 %
  int right = 0;     // of these, in the right order
};

inline accuracy accuracy_of(const std::vector<row>& rows, double ties = 0.02) {
  accuracy a;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const double error = std::abs(rows[i].predicted / rows[i].observed - 1);
    ++a.rows;
    a.mean += error / static_cast<double>(rows.size());
    a.worst = error > a.worst ? error : a.worst;
    for (std::size_t j = i + 1; j < rows.size(); ++j) {
      const double x = rows[i].observed, y = rows[j].observed;
      if (std::abs(x - y) <= ties * (x < y ? x : y)) continue;
      ++a.pairs;
      a.right += (rows[i].predicted < rows[j].predicted) == (x < y) ? 1 : 0;
    }
  }
  return a;
}

/// A node of 8 GPUs, or several. Rates are those of diagonal tiles; those of full ones are `ratio` times as high.
struct gpus {
  double causal;
  double backward_causal;
  double ratio;
  double units;
  double memory;
  double in_node;
  double between_nodes = 24e9;
  double merge = 30;
  double backward_merge = 0;
  double call = 0;  // of the host, for each iteration

  [[nodiscard]] orrery::machine machine(int nodes = 1) const {
    orrery::machine m;
    m.name = "published";
    m.levels = {{.name = "node", .count = 8, .bandwidth = in_node, .latency = 12e-6},
                {.name = "cluster", .count = nodes, .bandwidth = between_nodes, .latency = 20e-6}};
    m.device.forward = {.full = ratio * causal, .causal = causal, .launch = 10e-6, .units = units, .merge = merge};
    m.device.backward = {.full = ratio * backward_causal,
                         .causal = backward_causal,
                         .launch = 10e-6,
                         .units = units,
                         .merge = backward_merge};
    m.device.memory = memory;
    m.device.call = call;
    return m;
  }
};

/// Seconds of one call of a system that sends the whole schedule, and partials of the forward as it stores them.
inline double seconds(const char* topology, int world, orrery::machine m, const orrery::attention_shape& shape,
                      bool causal, const char* layout, orrery::pass p = orrery::pass::forward) {
  const orrery::any_mask mask = causal ? orrery::any_mask{orrery::causal{}} : orrery::any_mask{orrery::full{}};
  const orrery::simulation_options options{
      .pass = p, .sum_bytes = p == orrery::pass::forward ? 2 : 4, .as_written = true};
  const orrery::any_topology chosen = orrery::topology_named(topology);
  const std::string name = layout;
  if (p != orrery::pass::forward) m.device.call = 0;
  if (name == "zigzag") return simulate(chosen, world, m, shape, mask, orrery::zigzag{}, options).seconds;
  if (name == "striped") return simulate(chosen, world, m, shape, mask, orrery::striped<1>{}, options).seconds;
  return simulate(chosen, world, m, shape, mask, orrery::contiguous{}, options).seconds;
}

/// Visible pairs of a sequence.
inline double pairs(double n, bool causal) { return causal ? n * (n + 1) / 2 : n * n; }

/// The ring of ring-flash-attention over 8 GPUs, by layout.
inline table ring_flash_attention() {
  table t{"ring-flash-attention",
          "README of ring-flash-attention: 8 GPUs, 32:8 heads of 128, bfloat16, causal, 65536 tokens",
          "ms",
          "NVLink 160 (H800), 220 GB/s (A100); 12 us; memory 2.9, 1.7 TB/s; rates from the column \"ideal\"",
          "ratio of full to diagonal tiles 1.10, merge 30 B, backward-merge 0 (12 rows); rates (4 rows more)",
          {}};
  struct measured {
    const char* name;
    double forward[4];  // iterations a second: ideal, contiguous, zigzag, striped
    double both[4];
    gpus machine;
  };
  const orrery::attention_shape shape{.length = 65536, .query_heads = 32, .key_heads = 8, .head_dim = 128};
  for (measured m :
       {measured{"H800", {73.9, 38.5, 63.0, 55.0}, {19.3, 10.4, 17.4, 16.0}, {0, 0, 1.10, 132, 2.9e12, 160e9}},
        measured{"A100", {46.7, 24.0, 38.2, 32.5}, {11.8, 6.2, 10.6, 9.75}, {0, 0, 1.10, 108, 1.7e12, 220e9}}}) {
    // One GPU's kernel on its share of the work: with 50 columns of prologue and 128 of each diagonal a row.
    const double work = (pairs(65536, true) + 65536.0 * 178) * 32 * 128;
    const double forward = 8 / m.forward[0], backward = 8 / m.both[0] - forward;
    m.machine.causal = 4 * work / forward;
    m.machine.backward_causal = 10 * work / backward;
    const char* const layouts[] = {"contiguous", "zigzag", "striped"};
    for (std::size_t i = 0; i < 3; ++i) {
      const double f = seconds("ring", 8, m.machine.machine(), shape, true, layouts[i]);
      const double b = seconds("ring", 8, m.machine.machine(), shape, true, layouts[i], orrery::pass::circulate_keys);
      const std::string label = std::string{m.name} + " " + layouts[i];
      t.rows.push_back({label + ", forward", 1e3 / m.forward[i + 1], 1e3 * f});
      t.rows.push_back({label + ", both", 1e3 / m.both[i + 1], 1e3 * (f + b)});
    }
  }
  return t;
}

/// Four systems over 8 to 64 H100s, forward.
inline table magi_attention() {
  table t{
      "MagiAttention's benchmark",
      "H100, 64:8 heads of 128, bfloat16, 8192 tokens a GPU, FlashAttention-3; read off a chart",
      "TFLOP/s",
      "the single kernel at 8192 tokens, 671 full and 656 causal; NVLink 330, NDR 48 GB/s; merge from the ring above",
      "0.97 of the single kernel's rate (32 rows)",
      {}};
  struct measured {
    const char* name;
    const char* topology;
    double full[4];  // of 8, 16, 32, 64 GPUs
    double causal[4];
  };
  const gpus h100{0.97 * 656e12, 0.97 * 515e12, 671.0 / 656, 132, 3e12, 330e9, 48e9};
  for (const measured& m : {measured{"Ulysses", "ulysses", {603, 573, 581, 618}, {599, 556, 579, 581}},
                            measured{"ring", "ring", {510, 533, 515, 511}, {421, 452, 450, 445}},
                            measured{"USP", "usp<8>", {579, 595, 593, 601}, {589, 585, 589, 586}},
                            measured{"double ring", "double_ring<8>", {577, 601, 592, 603}, {591, 587, 578, 588}}}) {
    for (const bool causal : {false, true}) {
      for (std::size_t i = 0; i < 4; ++i) {
        const int world = 8 << i;
        const orrery::attention_shape shape{.length = 8192 * world, .query_heads = 64, .key_heads = 8, .head_dim = 128};
        const double took =
            seconds(m.topology, world, h100.machine(world / 8), shape, causal, causal ? "zigzag" : "contiguous");
        const double flop = 4 * pairs(8192.0 * world, causal) * 64 * 128 / world;
        t.rows.push_back({std::string{m.name} + (causal ? ", causal, " : ", full, ") + std::to_string(world),
                          causal ? m.causal[i] : m.full[i], 1e-12 * flop / took});
      }
    }
  }
  return t;
}

/// 8 A100s: rates from this table serve the next one, too.
inline gpus burst_gpus() {
  gpus a100{209.4e12 / 1.10, 192.5e12 / 1.10, 1.10, 108, 1.7e12, 220e9};
  a100.call = 11.3e-3;
  return a100;
}

/// BurstAttention over one node.
inline table burst_one_node() {
  table t{"BurstAttention, one node",
          "README of BurstAttention: 8 A100, 32 heads of 128, full mask",
          "ms",
          "NVLink 220 GB/s, 12 us; memory 1.7 TB/s; ratio and merges from the ring above",
          "rates 209.4 and 192.5 TFLOP/s (2 rows), 11.3 ms an iteration (1 row)",
          {}};
  const double forward[] = {60, 184, 695, 2659, 10868}, both[] = {181, 668, 2578, 10107, 40276};
  for (std::size_t i = 0; i < 5; ++i) {
    const orrery::attention_shape shape{.length = std::int64_t{65536} << i, .query_heads = 32, .head_dim = 128};
    const orrery::machine m = burst_gpus().machine();
    const double f = seconds("double_ring<8>", 8, m, shape, false, "contiguous");
    const double b = seconds("double_ring<8>", 8, m, shape, false, "contiguous", orrery::pass::circulate_queries);
    const std::string label = std::to_string(64 << i) + "K, ";
    t.rows.push_back({label + "forward", forward[i], 1e3 * f});
    t.rows.push_back({label + "both", both[i], 1e3 * (f + b)});
  }
  return t;
}

/// BurstAttention's logs over four nodes: double ring (keys circulate) and burst (queries do).
inline table burst_logs() {
  table t{"BurstAttention's logs, four nodes",
          "32 A800, 40 heads of 128, bfloat16, causal",
          "ms",
          "of the one node; between nodes 24 GB/s, 20 us; zigzag assumed",
          "nothing",
          {}};
  const double ring_forward[] = {46.62, 137.45, 471.33}, ring_both[] = {148.48, 467.88, 1939.78};
  const double burst_forward[] = {50, 130, 470}, burst_both[] = {150, 470, 1720};
  const orrery::machine m = burst_gpus().machine(4);
  for (std::size_t i = 0; i < 3; ++i) {
    const orrery::attention_shape shape{.length = std::int64_t{131072} << i, .query_heads = 40, .head_dim = 128};
    const double f = seconds("double_ring<8>", 32, m, shape, true, "zigzag");
    const double keys = seconds("double_ring<8>", 32, m, shape, true, "zigzag", orrery::pass::circulate_keys);
    const double queries = seconds("double_ring<8>", 32, m, shape, true, "zigzag", orrery::pass::circulate_queries);
    const std::string label = std::to_string(128 << i) + "K, ";
    t.rows.push_back({label + "double ring, forward", ring_forward[i], 1e3 * f});
    t.rows.push_back({label + "double ring, both", ring_both[i], 1e3 * (f + keys)});
    t.rows.push_back({label + "burst, forward", burst_forward[i], 1e3 * f});
    t.rows.push_back({label + "burst, both", burst_both[i], 1e3 * (f + queries)});
  }
  return t;
}

/// The methods that BurstAttention compares.
inline table burst_methods() {
  table t{"BurstAttention's comparison, four nodes",
          "32 A800, 40 heads of 128, bfloat16, causal, forward and backward",
          "ms, from TFLOP/s",
          "as the logs",
          "nothing",
          {}};
  struct measured {
    const char* name;
    const char* topology;
    orrery::pass backward;
    double rates[4];  // at 128K, 256K, 512K, 1M; 0: not published
  };
  const orrery::machine m = burst_gpus().machine(4);
  for (const measured& one :
       {measured{"TransformerEngine's ring", "ring", orrery::pass::circulate_keys, {53.1, 104.6, 0, 0}},
        measured{"USP", "usp<8>", orrery::pass::circulate_keys, {140.4, 166.8, 174.5, 181.7}},
        measured{"LoongTrain", "double_ring<8>", orrery::pass::circulate_keys, {160.3, 0, 0, 140.7}},
        measured{"burst", "double_ring<8>", orrery::pass::circulate_queries, {128.8, 163.3, 178.6, 187.7}}}) {
    for (std::size_t i = 0; i < 4; ++i) {
      if (one.rates[i] == 0) continue;
      const double n = 131072.0 * static_cast<double>(1 << i);
      const orrery::attention_shape shape{.length = static_cast<std::int64_t>(n), .query_heads = 40, .head_dim = 128};
      const double took = seconds(one.topology, 32, m, shape, true, "zigzag") +
                          seconds(one.topology, 32, m, shape, true, "zigzag", one.backward);
      t.rows.push_back({std::string{one.name} + ", " + std::to_string(128 << i) + "K",
                        1e-9 * 14 * (n * n / 2) * 40 * 128 / 32 / one.rates[i], 1e3 * took});
    }
  }
  return t;
}

/// Hybrids of all-to-all and ring over one node, by layout. Calibrated on the first row of each shape.
inline table usp_one_node(bool zigzag) {
  table t{
      zigzag ? "USP's README, zigzag" : "USP's README, contiguous",
      "8 A100, 131072 tokens, batch 2, causal, forward",
      "ms",
      "NVLink 220 GB/s, 12 us; memory 1.7 TB/s; ratio and merge from the ring above",
      zigzag ? "rates 148 (head dimension 32) and 208 TFLOP/s (128), a row each" : "nothing: rates of the zigzag rows",
      {}};
  struct measured {
    const char* name;
    std::int64_t heads, dim;
    double rate;
    double zigzag[4];  // iterations a second of U = 8, 4, 2, 1; 0: not published
    double contiguous[4];
  };
  for (const measured& m :
       {measured{"32 heads of 32", 32, 32, 148e12, {15.90, 16.03, 15.31, 13.17}, {15.92, 8.72, 9.04, 0}},
        measured{"8 heads of 128", 8, 128, 208e12, {20.99, 21.92, 21.38, 18.21}, {20.99, 15.31, 8.99, 7.77}}}) {
    const char* const topologies[] = {"ulysses", "usp<4>", "usp<2>", "ring"};
    const orrery::attention_shape shape{.batch = 2, .length = 131072, .query_heads = m.heads, .head_dim = m.dim};
    for (std::size_t i = 0; i < 4; ++i) {
      const double rate = zigzag ? m.zigzag[i] : m.contiguous[i];
      if (rate == 0) continue;
      const gpus a100{m.rate, m.rate, 1.10, 108, 1.7e12, 220e9};
      t.rows.push_back(
          {std::string{m.name} + ", " + topologies[i], 1e3 / rate,
           1e3 * seconds(topologies[i], 8, a100.machine(), shape, true, zigzag ? "zigzag" : "contiguous")});
    }
  }
  return t;
}

/// Training over 32 A100s, whose nodes share a card: a ring, and WallFacer's with teams of 2 and 4.
inline table wallfacer_clusters(int ranks_per_node) {
  const bool sixteen = ranks_per_node == 16;
  table t{"WallFacer, " + std::to_string(ranks_per_node) + " A100 a node",
          "arXiv 2407.00611: 32 A100, GPT-3B (taken as 16 layers of 32 heads of 128); read off a chart",
          "s an iteration",
          "the ring circulates keys, WallFacer queries, as published; NVLink 220 GB/s; zigzag assumed",
          sixteen ? "card 4.67 GB/s and 6.67 s for the rest of an iteration (the ring's 2 rows)"
                  : "card 4.96 GB/s and 8.05 s for the rest of an iteration (the ring's 2 rows)",
          {}};
  const double rates[2][6] = {{3.12, 5.08, 3.42, 3.71, 5.29, 3.73}, {3.04, 2.56, 4.13, 3.74, 3.20, 4.49}};
  orrery::machine m = gpus{205e12, 175e12, 1.05, 108, 1.7e12, 220e9}.machine();
  m.levels[0].count = ranks_per_node;
  m.levels[1].count = 32 / ranks_per_node;
  m.levels[1].bandwidth = sixteen ? 4.67e9 : 4.96e9;
  m.levels[1].shared_by = "node";
  const double rest = sixteen ? 6.67 : 8.05;
  const char* const topologies[] = {"ring", "wallfacer<2>", "wallfacer<4>"};
  for (std::size_t i = 0; i < 6; ++i) {
    const double n = i < 3 ? 65536 : 131072;
    const orrery::attention_shape shape{.length = static_cast<std::int64_t>(n), .query_heads = 32, .head_dim = 128};
    const char* const topology = topologies[i % 3];
    const orrery::pass backward = i % 3 == 0 ? orrery::pass::circulate_keys : orrery::pass::circulate_queries;
    const double layer =
        seconds(topology, 32, m, shape, true, "zigzag") + seconds(topology, 32, m, shape, true, "zigzag", backward);
    t.rows.push_back({std::string{topology} + (i < 3 ? ", 64K" : ", 128K"), 1e-3 * n / rates[sixteen ? 0 : 1][i],
                      rest + 16 * layer});
  }
  return t;
}

}  // namespace published
