// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <stdexcept>
#include <string>
#include <utility>

#include "orrery/schedule/relabel.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/traffic/traffic.hpp"

namespace orrery {

/// A placement says which rank does what: `ranks(topology, world, pass)` is a permutation, `ranks(...)[r]` the rank
/// that does what the topology wrote for rank r. Like a topology it is a small value; it has a `name()`, and may have
/// `const char* refuses(int world) const` (null, or the end of a sentence).
template <class Placement, class Topology>
concept placement = topology<Topology> && std::copy_constructible<Placement> &&
    requires(const Placement& p, const Topology& t) {
  { p.ranks(t, 1, pass::forward) } -> std::convertible_to<list<int>>;
  { p.name() } -> std::convertible_to<std::string>;
};

/// How many consecutive ranks the topology, as written, calls a team; see `rings_in_nodes`.
template <class Topology>
concept topology_of_teams = requires(const Topology& t) {
  { t.team(1) } -> std::convertible_to<int>;
};

/// As the topology wrote it. All topologies here write teams (WallFacer's teams, rows, groups of an all-to-all, inner
/// rings) as consecutive ranks, which are on one node where ranks are numbered node by node: their collectives stay
/// inside nodes, and their rings go from node to node.
struct teams_in_nodes {
  [[nodiscard]] static std::string name() { return "teams_in_nodes"; }
  template <topology Topology>
  [[nodiscard]] static constexpr list<int> ranks(const Topology&, int world, pass = pass::forward) {
    list<int> to(world);
    for (int rank = 0; rank < world; ++rank) to[rank] = rank;
    return to;
  }
};

/// The other way round: the members of the same number of all teams are consecutive ranks, so that rings stay inside
/// nodes and collectives go from node to node. With teams of T ranks, member m of team t is rank m·P/T + t.
///
/// The topology must say by `static constexpr int team(int world)` how large its teams are.
struct rings_in_nodes {
  [[nodiscard]] static std::string name() { return "rings_in_nodes"; }
  template <topology Topology>
  [[nodiscard]] static constexpr list<int> ranks(const Topology& t, int world, pass = pass::forward) {
    static_assert(topology_of_teams<Topology>,
                  "orrery: rings_in_nodes must know how large this topology's teams are: give it `static constexpr int "
                  "team(int world)`, or place it by least_egress, which need not know");
    const int size = t.team(world);
    const int teams = world / size;
    list<int> to(world);
    for (int rank = 0; rank < world; ++rank) to[rank] = rank % size * teams + rank / size;
    return to;
  }
};

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
        sent_[a] += costs.units_between[a * world_ + b];
        between_[a * world_ + b] = costs.units_between[a * world_ + b] + costs.units_between[b * world_ + a];
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
    const double most = busiest(nobody, nobody);
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

/// The relabelling with the least per-node egress for a machine whose nodes have `ranks_per_node` consecutive ranks
/// each: what counts where nodes share a network card. Each pass is placed on its own, which costs nothing, since
/// shards stay at home. See `egress_search` for how good it is, and what it costs.
struct least_egress {
  int ranks_per_node = 1;
  double query_heads_per_key_head = 1;  ///< weighs queries against keys, as in `traffic`

  constexpr bool operator==(const least_egress&) const = default;

  [[nodiscard]] std::string name() const {
    std::string heads = std::to_string(query_heads_per_key_head);
    heads.erase(heads.find_last_not_of('0') + 1);
    if (heads.back() == '.') heads.pop_back();
    return "least_egress{" + std::to_string(ranks_per_node) +
           (query_heads_per_key_head == 1 ? std::string{} : "," + heads) + "}";
  }
  [[nodiscard]] constexpr const char* refuses(int world) const {
    return ranks_per_node >= 1 && world % ranks_per_node == 0
               ? nullptr
               : "needs a world that ranks_per_node of its placement, least_egress, divides: give that number";
  }
  template <topology Topology>
  [[nodiscard]] constexpr list<int> ranks(const Topology& t, int world, pass p = pass::forward) const {
    return egress_search{traffic(t, world, p, query_heads_per_key_head), ranks_per_node}.run();
  }
};

/// A topology whose ranks are placed otherwise on the machine: a topology again, with everything that topologies have.
///
///     using rings_inside = orrery::placed<orrery::wallfacer<2>, orrery::rings_in_nodes>;
///     static_assert(orrery::verify(rings_inside{}, 16));
///
///     const orrery::placed best{orrery::wallfacer<2>{}, orrery::least_egress{.ranks_per_node = ranks_per_node}};
///     orrery::traffic(best, 16).node_egress(ranks_per_node);
///     orrery::attention<std::remove_const_t<decltype(best)>, orrery::flash<float>> attend{world, shape, mask, layout,
///     best};
///
/// Relabelling ranks (see `relabel`) preserves the verdict, volumes, messages, steps and slots; what changes is which
/// of the messages leave a node. Programs take as long to write, and `Placement` its own time.
///
/// Throws `std::invalid_argument` with a sentence, or does not compile, where the placement is not a permutation.
template <topology Topology, class Placement>
struct placed {
  static_assert(orrery::placement<Placement, Topology>,
                "orrery: placed<Topology, Placement> needs a placement: a type with name() and ranks(topology, world, "
                "pass), which returns a list<int>; see teams_in_nodes");

  [[no_unique_address]] Topology topology{};
  [[no_unique_address]] Placement placement{};

  [[nodiscard]] std::string name() const { return "placed<" + name_of(topology) + "," + placement.name() + ">"; }
  [[nodiscard]] constexpr const char* refuses(int world, pass p = pass::forward) const {
    if (const char* reason = orrery::refuses(topology, world, p)) return reason;
    if constexpr (requires { placement.refuses(world); }) return placement.refuses(world);
    return nullptr;
  }
  [[nodiscard]] constexpr int slices(int world) const { return slices_of(topology, world); }

  /// Where each rank of the topology goes. The world must be admitted.
  [[nodiscard]] constexpr list<int> ranks(int world, pass p = pass::forward) const {
    list<int> to = placement.ranks(topology, world, p);
    list<int> taken(world);
    bool all = to.size() == world;
    for (int rank = 0; all && rank < world; ++rank) all = to[rank] >= 0 && to[rank] < world && ++taken[to[rank]] == 1;
    if (!all) {
      throw std::invalid_argument{"orrery: " + name() + " over " + std::to_string(world) +
                                  " ranks: the placement is not a permutation; it must give every rank from 0 to " +
                                  std::to_string(world - 1) + " once"};
    }
    return to;
  }

  [[nodiscard]] constexpr orrery::program program(int rank, int world) const
      requires(!topology_with_backward<Topology>) {
    return written(rank, world, pass::forward);
  }
  [[nodiscard]] constexpr orrery::program program(int rank, int world,
                                                  pass p) const requires topology_with_backward<Topology> {
    return written(rank, world, p);
  }
  [[nodiscard]] constexpr bool operator==(const placed& other) const
      requires(comparable_by_value<Topology>&& comparable_by_value<Placement>) {
    return is_same_value(topology, other.topology) && is_same_value(placement, other.placement);
  }
  [[nodiscard]] constexpr list<orrery::program> programs(int world, pass p) const {
    return relabel(drafts_of(topology, world, p), ranks(world, p));
  }

 private:
  [[nodiscard]] constexpr orrery::program written(int rank, int world, pass p) const {
    const list<int> to = ranks(world, p);
    int role = 0;
    while (to[role] != rank) ++role;
    return relabel(draft_of(topology, role, world, p), to);
  }
};

template <topology Topology, class Placement>
placed(Topology, Placement) -> placed<Topology, Placement>;

}  // namespace orrery
