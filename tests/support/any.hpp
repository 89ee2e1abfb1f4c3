// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "orrery/mask/mask.hpp"
#include "orrery/topology/any_topology.hpp"

#include "support/topologies.hpp"

/// Policies that are chosen at run time, so that one operator's code serves many cases.
namespace any {

/// Those of ORRERY_TEST_TOPOLOGIES.
[[nodiscard]] inline std::vector<orrery::any_topology> topologies() {
  return []<class... Topologies>(const std::tuple<Topologies...>&) {
    return std::vector<orrery::any_topology>{Topologies{}...};
  }(std::tuple<ORRERY_TEST_TOPOLOGIES>{});
}

/// Keys that are at most `reach` before the query and at most `ahead` after it, but for every `hole`-th: full, causal,
/// windows, and masks of which no rectangle is known.
struct mask {
  std::int64_t reach = INT64_MAX / 4;
  std::int64_t ahead = INT64_MAX / 4;
  std::int64_t hole = 0;

  [[nodiscard]] bool visible(std::int64_t query, std::int64_t key) const {
    return key <= query + ahead && key >= query - reach && (hole == 0 || key % hole != 0);
  }
  [[nodiscard]] orrery::visibility classify(std::int64_t query_first, std::int64_t query_last, std::int64_t key_first,
                                            std::int64_t key_last) const {
    if (key_first > query_last + ahead || key_last < query_first - reach) return orrery::visibility::none;
    if (hole == 0 && key_last <= query_first + ahead && key_first >= query_last - reach) return orrery::visibility::all;
    return orrery::visibility::some;
  }
  [[nodiscard]] std::string name() const {
    return "mask " + std::to_string(reach) + "/" + std::to_string(ahead) + "/" + std::to_string(hole);
  }
};

}  // namespace any
