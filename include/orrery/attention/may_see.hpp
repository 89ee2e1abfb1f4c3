// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstdint>

#include "orrery/layout/segment.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/schedule/list.hpp"

namespace orrery::detail {

/// The positions of a segment that has tokens, from the first to the last, with what may lie between its runs.
[[nodiscard]] constexpr position_interval positions_of(const segment& tokens) noexcept {
  return {tokens.begin, tokens.position(tokens.count - 1)};
}

/// True if a query of these segments sees a key of those. `false` is certain; `true` may be wrong where `classify`
/// answers `some` of a rectangle without a visible pair, and where a segment consists of runs, between which only
/// foreign tokens are seen.
///
/// Queries and Keys are ranges of `segment`, such as `segments`. Cost: a call of `classify` for each pair of segments;
/// with `keys_of` only for those whose keys are in its answer.
template <mask Mask, class Queries, class Keys>
[[nodiscard]] constexpr bool may_see(const Mask& mask, const Queries& queries, const Keys& keys) {
  for (const segment& of_queries : queries) {
    if (of_queries.count <= 0) continue;
    const position_interval asking = positions_of(of_queries);
    position_interval seen{0, INT64_MAX};
    if constexpr (mask_with_keys_of<Mask>) seen = mask.keys_of(asking.first, asking.last);
    for (const segment& of_keys : keys) {
      if (of_keys.count <= 0) continue;
      const position_interval asked = positions_of(of_keys);
      if ((seen & asked).empty()) continue;
      if (mask.classify(asking.first, asking.last, asked.first, asked.last) != visibility::none) return true;
    }
  }
  return false;
}

/// Calls visit(query, key) once for each pair of shards, or chunks, by their indices, of which `may_see` is true; those
/// of one query follow each other, in no particular order.
///
/// Queries and Keys are lists of ranges of `segment`. Cost for S of them: with `keys_of` S of its calls, S log S steps
/// and a call of `classify` for each pair that may be visible; else S² calls of `classify`.
template <mask Mask, class Queries, class Keys, class Visit>
constexpr void for_each_pair_that_may_see(const Mask& mask, const schedule::list<Queries>& queries,
                                          const schedule::list<Keys>& keys, const Visit& visit) {
  if constexpr (!mask_with_keys_of<Mask>) {
    for (int query = 0; query < queries.size(); ++query) {
      for (int key = 0; key < keys.size(); ++key) {
        if (may_see(mask, queries[query], keys[key])) visit(query, key);
      }
    }
  } else {
    struct key_segment {
      position_interval positions;
      int key = 0;
    };
    schedule::list<key_segment> all;
    for (int key = 0; key < keys.size(); ++key) {
      for (const segment& of_keys : keys[key]) {
        if (of_keys.count > 0) all.push_back({positions_of(of_keys), key});
      }
    }
    std::sort(all.begin(), all.end(),
              [](const key_segment& a, const key_segment& b) { return a.positions.first < b.positions.first; });
    schedule::list<std::int64_t> furthest{all.size()};  // the last position of this segment and those before it
    for (int i = 0; i < all.size(); ++i) {
      furthest[i] = i > 0 ? (std::max)(furthest[i - 1], all[i].positions.last) : all[i].positions.last;
    }
    schedule::list<int> last_visitor{keys.size(), -1};
    for (int query = 0; query < queries.size(); ++query) {
      for (const segment& of_queries : queries[query]) {
        if (of_queries.count <= 0) continue;
        const position_interval asking = positions_of(of_queries);
        const position_interval seen = mask.keys_of(asking.first, asking.last);
        if (seen.empty()) continue;
        const std::int64_t* const first = std::lower_bound(furthest.begin(), furthest.end(), seen.first);
        for (int i = static_cast<int>(first - furthest.begin()); i < all.size(); ++i) {
          const auto& [asked, key] = all[i];
          if (asked.first > seen.last) break;
          if (last_visitor[key] == query || (seen & asked).empty()) continue;
          if (mask.classify(asking.first, asking.last, asked.first, asked.last) == visibility::none) continue;
          last_visitor[key] = query;
          visit(query, key);
        }
      }
    }
  }
}

}  // namespace orrery::detail
