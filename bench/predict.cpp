// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Writes bench/predict.md: what `simulate` predicts beside what others, and bench/cluster.py, have measured.
//
//     bench_predict [bench/cluster/results.json] > bench/predict.md

#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "predict/cluster_rows.hpp"
#include "predict/published.hpp"

namespace {

std::string number(double value, int digits) {
  char text[48];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}
std::string percent(double part, int digits = 1) { return number(100 * part, digits) + " %"; }
std::string with_sign(double part) { return (part < 0 ? "" : "+") + percent(part); }

void print(const published::accuracy& a) {
  std::cout << a.rows << " rows: off by " << percent(a.mean) << " on average, by " << percent(a.worst)
            << " at worst; of the pairs more than 2 % apart, " << a.right << " of " << a.pairs
            << " in the right order.\n\n";
}

void print(const published::table& t) {
  std::cout << "### " << t.name << "\n\n"
            << t.source << ". Constants: " << t.constants << ". Fitted to it: " << t.fitted << ".\n";
  print(published::accuracy_of(t.rows));
  const int digits = t.unit == "s an iteration" ? 2 : 1;
  std::cout << "| | published, " << t.unit << " | predicted | |\n| --- | --- | --- | --- |\n";
  for (const published::row& r : t.rows) {
    std::cout << "| " << r.label << " | " << number(r.observed, digits) << " | " << number(r.predicted, digits) << " | "
              << with_sign(r.predicted / r.observed - 1) << " |\n";
  }
  std::cout << "\n";
}

void print(const cluster::shape& s, const std::vector<cluster::row>& all) {
  std::vector<published::row> rows, held_out;
  for (const cluster::row& r : all) {
    if (r.shape != s.name) continue;
    rows.push_back({"`" + r.topology + "`, " + r.placement + ", " + r.pass, 1e3 * r.seconds, 1e3 * s.seconds(r)});
    if (r.topology != "ring") held_out.push_back(rows.back());
  }
  std::cout << "### " << s.nodes << " nodes of " << s.ranks_per_node
            << " ranks\n\nFitted to the ring's three rows: a card of " << number(s.fitted, 2) << " of the measured "
            << number(s.measured_rate / 1e6, 1) << " Mbit/s. Of the others, ";
  print(published::accuracy_of(held_out));
  std::cout << "| call | measured, ms | predicted | |\n| --- | --- | --- | --- |\n";
  for (const published::row& r : rows) {
    std::cout << "| " << r.label << " | " << number(r.observed, 0) << " | " << number(r.predicted, 0) << " | "
              << with_sign(r.predicted / r.observed - 1) << " |\n";
  }
  std::cout << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  const std::string file = argc > 1 ? argv[1] : "bench/cluster/results.json";
  const std::vector<cluster::row> measured = cluster::rows(file, "100mbit");
  if (argc > 2 || measured.empty()) {
    std::cerr << "usage: bench_predict [RESULTS]\nRESULTS is bench/cluster/results.json; " << file << " has no rows\n";
    return 2;
  }
  const std::vector<published::table> counted{published::ring_flash_attention(), published::magi_attention(),
                                              published::burst_one_node(), published::burst_logs(),
                                              published::burst_methods()};
  std::vector<published::row> all;
  for (const published::table& t : counted) all.insert(all.end(), t.rows.begin(), t.rows.end());

  std::cout << R"(# Predicted beside measured

Written by `bench_predict`; the constants stand in `tests/predict/published.hpp` and `tests/predict/cluster_rows.hpp`,
and `tests/predict/published.cpp` checks what is said here. No row of a table is left out. A constant that was chosen to
match rows of a table is called fitted; the other rows are predictions.

What `simulate` knows: the schedule's programs, the visible pairs of each tile, a rate for full and one for diagonal
tiles, the tail of a kernel's call, merging, latency and bandwidth of each level, and ports that messages share. What
others have published was measured on GPUs with other implementations than this library's.

## Published tables

The first five tables together, )";
  const published::accuracy together = published::accuracy_of(all);
  std::cout << together.rows << " rows: off by " << percent(together.mean) << " on average, by "
            << percent(together.worst) << " at worst.\n\n";
  for (const published::table& t : counted) print(t);
  for (const published::table& t : {published::usp_one_node(true), published::usp_one_node(false),
                                    published::wallfacer_clusters(16), published::wallfacer_clusters(8)}) {
    print(t);
  }
  std::cout << R"(### What is not explained

- MagiAttention's double ring is faster than its ring with the same tiles and hops, by 1.13 to 1.4. Its merges cost
  nothing, which a schedule cannot tell: without them, the average of the table is about half.
- LoongTrain at 128K: 160 TFLOP/s are 120 ms, and a log of the same system says 148 ms. At 1M it falls to 141 TFLOP/s,
  for a reason that is not in the schedule.
- TransformerEngine's ring is bound by the network between nodes, of which no rate was published: 24 GB/s is a preset,
  30 would fit.
- The contiguous layout of USP's README is not monotonic: 8.72 iterations a second with a ring of 2, 9.04 with one of 4,
  although the latter has the more uneven work.
- The ring of 8 of USP's table loses more for each hop than ring-flash-attention's, more than its bytes explain: no
  constant fits both.
- Training over H100s of WallFacer's table: its ring takes 3.1 times as long for twice the tokens, more than attention
  and network do. It is not in these tables; nor are inference and whole trainers.

## This library over a network

`bench/cluster.py`: 16 ranks, nodes that are network namespaces of a machine with two cores, links of 100 Mbit/s. What
ranks compute was measured without communication (`ulysses` for tiles, what a ring takes more for steps). A forward was
measured twice; the shorter time counts.

)";
  for (const cluster::shape& s : cluster::shapes) print(s, measured);
  std::cout << R"(### What is not explained

- 8 nodes of 2: the ring contradicts itself. Its backward that circulates queries moves three quarters of the bytes of the
  one that circulates keys, and took 1.29 times as long; its forward took 499 ms in one run and 643 ms in the other. No
  rate of the card fits these rows, and the fitted one is too low for most other schedules: it is the measurement of the
  ring that is off.
- 4 nodes of 4: calls that send to several nodes at once are slower than predicted, by up to 16 %. Two runs of one
  forward differ by up to 28 %.
- Faster links than 100 Mbit/s: the ranks share two cores, which then limit. The model does not apply.

What a machine predicts that `bench_machine` has calibrated, beside what it then measures, is in
[machine.md](machine.md).
)";
  return std::cout ? 0 : 1;
}
