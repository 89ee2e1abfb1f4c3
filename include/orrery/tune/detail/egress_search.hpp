// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <utility>

#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::detail {

/// The schedule's costs between ranks, and a search for a distribution of the ranks over nodes of equal size in which
/// the busiest node sends least to others, and then the squares of what nodes send add up to least.
///
/// Begins with P = T × P/T grids read by columns, for every T, and up to 64 ranks with some shuffled distributions, and
/// exchanges ranks of different nodes while that helps. The result is never worse than `teams_in_nodes` or
/// `rings_in_nodes`; nothing is better where the tests try all distributions (up to 9 ranks), but for larger worlds
/// that is not proven. A round tries P²/2 exchanges, each in constant time or, rarely, in that of the number of nodes;
/// there are a few rounds from each beginning. It takes P² + P · nodes numbers.
class egress_search {
 public:
  constexpr egress_search(const traffic_report& costs, int ranks_per_node)
      : world_{costs.world},
        per_node_{ranks_per_node},
        nodes_{costs.world / ranks_per_node},
        between_(world_ * world_),
        sent_(world_) {
    for (int a = 0; a < world_; ++a) {
      for (int b = 0; b < world_; ++b) {
        if (a == b) continue;
        sent_[a] += costs.between[a * world_ + b];
        between_[a * world_ + b] = costs.between[a * world_ + b] + costs.between[b * world_ + a];
      }
    }
  }

  /// Where each rank goes.
  [[nodiscard]] constexpr list<int> run() {
    node_of_ = list<int>(world_);
    for (int size = 1; size <= world_; ++size) {
      if (world_ % size != 0) continue;
      for (int rank = 0; rank < world_; ++rank)
        node_of_[rank] = (rank % size * (world_ / size) + rank / size) / per_node_;
      descend();
    }
    unsigned random = 1;  // the same for all ranks
    for (int shuffle = 0; shuffle < (world_ <= most_shuffled ? shuffles : 0); ++shuffle) {
      for (int rank = world_ - 1; rank > 0; --rank) {
        random = random * 1664525u + 1013904223u;
        const int other = static_cast<int>((random >> 8) % static_cast<unsigned>(rank + 1));
        std::swap(node_of_[rank], node_of_[other]);
      }
      descend();
    }
    list<int> next(nodes_);
    for (int node = 0; node < nodes_; ++node) next[node] = node * per_node_;
    list<int> to(world_);
    for (int rank = 0; rank < world_; ++rank) to[rank] = next[best_[rank]]++;
    return to;
  }

 private:
  static constexpr double rounding = 1e-9;
  static constexpr int shuffles = 16;
  static constexpr int most_shuffled = 64;  // ranks

  [[nodiscard]] static constexpr bool is_less(double a, double a2, double b, double b2) noexcept {
    return a < b - rounding || (a < b + rounding && a2 < b2 - rounding);
  }

  /// Exchanges ranks while that helps, and keeps the result if it is the best so far.
  constexpr void descend() {
    weigh();
    while (improve()) {}
    const double most = busiest(no_rank, no_rank);
    if (!best_.empty() && !is_less(most, squares(), least_, least_squares_)) return;
    best_ = node_of_;
    least_ = most;
    least_squares_ = squares();
  }

  /// What each node sends to others, and what each rank exchanges with each node.
  constexpr void weigh() {
    egress_ = list<double>(nodes_);
    with_node_ = list<double>(world_ * nodes_);
    for (int a = 0; a < world_; ++a) {
      egress_[node_of_[a]] += sent_[a];
      for (int b = 0; b < world_; ++b) with_node_[a * nodes_ + node_of_[b]] += between_[a * world_ + b];
    }
    // What two ranks of a node exchange is counted at both, and is what they send, once.
    for (int a = 0; a < world_; ++a) egress_[node_of_[a]] -= with_node_[a * nodes_ + node_of_[a]] / 2;
  }

  [[nodiscard]] constexpr double busiest(int but, int nor) const {
    double most = 0;
    for (int node = 0; node < nodes_; ++node)
      if (node != but && node != nor && egress_.items[node] > most) most = egress_.items[node];
    return most;
  }
  [[nodiscard]] constexpr double squares() const {
    double sum = 0;
    for (const double units : egress_) sum += units * units;
    return sum;
  }

  /// Does every exchange of two ranks that helps; says whether there was one.
  constexpr bool improve() {
    bool any = false;
    for (int a = 1; a < world_; ++a) {
      for (int b = 0; b < a; ++b) {
        const int n = node_of_.items[a];
        const int m = node_of_.items[b];
        if (n == m) continue;
        const double both = between_.items[a * world_ + b];
        const double* const of_a = with_node_.items + a * nodes_;
        const double* const of_b = with_node_.items + b * nodes_;
        const double sends_n = egress_.items[n] - sent_.items[a] + sent_.items[b] + of_a[n] - of_b[n] + both;
        const double sends_m = egress_.items[m] - sent_.items[b] + sent_.items[a] + of_b[m] - of_a[m] + both;
        const double was_n = egress_.items[n];
        const double was_m = egress_.items[m];
        const double was = was_n > was_m ? was_n : was_m;
        const double would_be = sends_n > sends_m ? sends_n : sends_m;
        const double gain = was_n * was_n + was_m * was_m - sends_n * sends_n - sends_m * sends_m;
        // The busiest node sends less, or as much with fewer squares.
        const bool helps = gain > rounding ? would_be <= was || would_be <= busiest(n, m)
                                           : would_be < was - rounding && busiest(n, m) < was - rounding;
        if (!helps) continue;
        exchange_nodes(a, b);
        egress_[n] = sends_n;
        egress_[m] = sends_m;
        any = true;
      }
    }
    return any;
  }

  constexpr void exchange_nodes(int a, int b) {
    const int n = node_of_[a];
    const int m = node_of_[b];
    node_of_[a] = m;
    node_of_[b] = n;
    for (int rank = 0; rank < world_; ++rank) {
      const double change = between_[rank * world_ + b] - between_[rank * world_ + a];
      with_node_[rank * nodes_ + n] += change;
      with_node_[rank * nodes_ + m] -= change;
    }
  }

  int world_;
  int per_node_;
  int nodes_;
  list<double> between_;  // units that two ranks send each other
  list<double> sent_;     // by each rank
  list<int> node_of_;
  list<int> best_;
  double least_ = 0;
  double least_squares_ = 0;
  list<double> egress_;
  list<double> with_node_;
};

}  // namespace orrery::detail
