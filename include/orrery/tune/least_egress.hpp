// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/tune/detail/egress_search.hpp"

namespace orrery {

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
  [[nodiscard]] constexpr const char* unsupported_reason(int world) const {
    return ranks_per_node >= 1 && world % ranks_per_node == 0
               ? nullptr
               : "needs a world that ranks_per_node of its placement, least_egress, divides: give that number";
  }
  template <topology Topology>
  [[nodiscard]] constexpr schedule::list<int> ranks(const Topology& t, int world,
                                                    schedule::pass p = schedule::pass::forward) const {
    return detail::egress_search{traffic(t, world, p, query_heads_per_key_head), ranks_per_node}.run();
  }
};

}  // namespace orrery
