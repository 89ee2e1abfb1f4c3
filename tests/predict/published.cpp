// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Predictions against measurements: published ones, and this library's own over a network. The constants stand in
// published.hpp and cluster_rows.hpp; no row is left out. bench/predict.md shows all of them.
#include "predict/published.hpp"

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "predict/cluster_rows.hpp"

using published::accuracy;
using published::accuracy_of;

namespace {

void append(std::vector<published::row>& all, const published::table& t) {
  all.insert(all.end(), t.rows.begin(), t.rows.end());
}

/// The calls of a shape: what was measured, and what is predicted.
struct measured_shape {
  std::vector<cluster::row> rows;
  std::vector<double> predicted;
};
measured_shape measured(const cluster::shape& s) {
  measured_shape m;
  for (const cluster::row& r : cluster::rows(ORRERY_SOURCE_DIR "/bench/cluster/results.json", "100mbit")) {
    if (r.shape != s.name) continue;
    m.rows.push_back(r);
    m.predicted.push_back(s.seconds(r));
  }
  return m;
}

/// Of all calls but the ring's, to which the card's rate was fitted.
std::vector<published::row> held_out(const measured_shape& m) {
  std::vector<published::row> rows;
  for (std::size_t i = 0; i < m.rows.size(); ++i) {
    if (m.rows[i].topology != "ring") rows.push_back({m.rows[i].topology, m.rows[i].seconds, m.predicted[i]});
  }
  return rows;
}

/// Pairs of calls of one pass that differ by more than 5 %, and how many are predicted in the right order.
std::pair<int, int> orderings(const measured_shape& m) {
  std::pair<int, int> count{0, 0};
  for (std::size_t i = 0; i < m.rows.size(); ++i) {
    for (std::size_t j = i + 1; j < m.rows.size(); ++j) {
      const double x = m.rows[i].seconds, y = m.rows[j].seconds;
      if (m.rows[i].pass != m.rows[j].pass || (x < y ? y / x : x / y) <= 1.05) continue;
      ++count.first;
      count.second += (m.predicted[i] < m.predicted[j]) == (x < y) ? 1 : 0;
    }
  }
  return count;
}

/// How much longer a forward and a backward take of what is predicted to be fastest than of what is fastest.
double regret(const measured_shape& m) {
  double best_predicted = 0, chosen = 0, best = 0;
  for (std::size_t f = 0; f < m.rows.size(); ++f) {
    if (m.rows[f].pass != "forward") continue;
    for (std::size_t b = 0; b < m.rows.size(); ++b) {
      if (m.rows[b].pass == "forward" || m.rows[b].topology != m.rows[f].topology ||
          m.rows[b].placement != m.rows[f].placement)
        continue;
      const double seconds = m.rows[f].seconds + m.rows[b].seconds, predicted = m.predicted[f] + m.predicted[b];
      if (best == 0 || seconds < best) best = seconds;
      if (best_predicted == 0 || predicted < best_predicted) {
        best_predicted = predicted;
        chosen = seconds;
      }
    }
  }
  return chosen / best - 1;
}

}  // namespace

TEST_CASE("78 published rows: all of them, and none of what is fitted is called a prediction") {
  std::vector<published::row> all, predicted;
  for (const published::table& t : {published::ring_flash_attention(), published::magi_attention(),
                                    published::burst_one_node(), published::burst_logs(), published::burst_methods()}) {
    append(all, t);
    if (t.fitted == "nothing") append(predicted, t);
  }
  const accuracy a = accuracy_of(all);
  CHECK(a.rows == 78);
  CHECK(a.mean <= 0.07);
  CHECK(a.worst <= 0.29);  // LoongTrain at 128K, which a log of the same system contradicts by 24 %
  const accuracy of_predicted = accuracy_of(predicted);
  CHECK(of_predicted.rows == 24);
  CHECK(of_predicted.mean <= 0.08);
}

TEST_CASE("orderings of layouts, of passes and of systems") {
  const accuracy ring = accuracy_of(published::ring_flash_attention().rows);
  CHECK(ring.rows == 12);
  CHECK(ring.right == ring.pairs);
  CHECK(ring.pairs == 64);
  CHECK(ring.worst <= 0.07);
  const accuracy one_node = accuracy_of(published::burst_one_node().rows);
  CHECK(one_node.right == one_node.pairs);
  CHECK(one_node.worst <= 0.05);
  const accuracy logs = accuracy_of(published::burst_logs().rows);
  CHECK(logs.right >= 56);
  CHECK(logs.worst <= 0.13);
  const accuracy magi = accuracy_of(published::magi_attention().rows);
  CHECK(magi.rows == 32);
  CHECK(magi.mean <= 0.07);
  CHECK(magi.worst <= 0.25);
}

TEST_CASE("12 of 12 orderings of WallFacer's table over nodes that share a card") {
  int right = 0, pairs = 0;
  for (const int ranks_per_node : {16, 8}) {
    const published::table t = published::wallfacer_clusters(ranks_per_node);
    REQUIRE(t.rows.size() == 6);
    for (const std::size_t length : {std::size_t{0}, std::size_t{3}}) {
      for (std::size_t i = length; i < length + 3; ++i) {
        for (std::size_t j = i + 1; j < length + 3; ++j) {
          ++pairs;
          right += (t.rows[i].predicted < t.rows[j].predicted) == (t.rows[i].observed < t.rows[j].observed) ? 1 : 0;
        }
      }
    }
    CHECK(accuracy_of(t.rows).worst <= 0.23);
  }
  CHECK(pairs == 12);
  CHECK(right == 12);
}

TEST_CASE("hybrids of one node with zigzag; without it, they are not explained") {
  const accuracy zigzag = accuracy_of(published::usp_one_node(true).rows);
  CHECK(zigzag.rows == 8);
  CHECK(zigzag.worst <= 0.22);
  CHECK(accuracy_of(published::usp_one_node(false).rows).rows == 7);
}

TEST_CASE("own calls over nodes of 8 and 4 ranks, all but the ring held out") {
  std::vector<published::row> both;
  int pairs = 0, right = 0;
  for (const cluster::shape& s : cluster::shapes) {
    if (std::string{s.name} == "8x2") continue;
    CAPTURE(s.name);
    const measured_shape m = measured(s);
    const std::vector<published::row> rows = held_out(m);
    both.insert(both.end(), rows.begin(), rows.end());
    const auto [all, in_order] = orderings(m);
    pairs += all;
    right += in_order;
    CHECK(regret(m) <= 0.01);
  }
  const accuracy a = accuracy_of(both);
  CHECK(a.rows == 114);
  CHECK(a.mean <= 0.05);
  CHECK(a.worst <= 0.165);
  CHECK(right >= 0.97 * pairs);
  CHECK(pairs > 800);
}

// Their ring contradicts itself: its backward that circulates queries moves three quarters of the bytes of the one that
// circulates keys, and took 1.29 times as long; its forward was measured twice, 1.29 times apart. No rate fits these
// rows.
TEST_CASE("own calls over nodes of 2 ranks, whose ring was disturbed") {
  const measured_shape m = measured(cluster::shapes[2]);
  const accuracy a = accuracy_of(held_out(m));
  CHECK(a.rows == 72);
  CHECK(a.mean <= 0.1);
  CHECK(a.worst <= 0.31);
  const auto [pairs, right] = orderings(m);
  CHECK(right >= 0.91 * pairs);
  CHECK(regret(m) <= 0.11);
}
