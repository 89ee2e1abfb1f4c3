// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <string>

#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/tune/detail/egress_search.hpp"

namespace orrery {

/// The relabelling with the least per-node egress for a machine whose nodes have `ranks_per_node` consecutive ranks
/// each: what counts where nodes share a network card. Each pass is placed on its own, which costs nothing, since
/// shards stay at home. See `egress_search` for how good it is, and what it costs.
struct least_egress {
  int ranks_per_node = 1;
  double query_heads_per_key_head = 1;  ///< weighs queries against keys, as in `traffic`
  double sum_width = 1;                 ///< weighs partials against operands: 2 for bfloat16 and float16

  constexpr bool operator==(const least_egress&) const = default;

  [[nodiscard]] std::string name() const {
    const auto text = [](double number) {
      std::string digits = std::to_string(number);
      digits.erase(digits.find_last_not_of('0') + 1);
      if (digits.back() == '.') digits.pop_back();
      return digits;
    };
    std::string all = "least_egress{" + std::to_string(ranks_per_node);
    if (query_heads_per_key_head != 1 || sum_width != 1) all += "," + text(query_heads_per_key_head);
    if (sum_width != 1) all += "," + text(sum_width);
    return all + "}";
  }
  [[nodiscard]] constexpr const char* unsupported_reason(int world) const {
    return ranks_per_node >= 1 && world % ranks_per_node == 0
               ? nullptr
               : "needs a world that ranks_per_node of its placement, least_egress, divides: give that number";
  }
  template <topology Topology>
  [[nodiscard]] constexpr schedule::list<int> ranks(const Topology& t, int world,
                                                    schedule::pass p = schedule::pass::forward) const {
    return detail::egress_search{traffic(t, world, p, query_heads_per_key_head, sum_width), ranks_per_node}.run();
  }
};

}  // namespace orrery
