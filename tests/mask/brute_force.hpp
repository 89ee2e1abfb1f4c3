// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <sstream>
#include <string>

#include "orrery/mask/mask.hpp"

/// What a mask says of pairs, rectangles and intervals, beside a direct definition of its pairs.
namespace mask_test {

/// Of whose answers it is claimed that they are as sharp as can be; the others need only be right.
struct exact {
  bool classify = true;
  bool keys_of = true;
};

/// Every rectangle and every interval of queries among these positions. Empty, or the first answer that is wrong.
template <class Mask, class Visible>
[[nodiscard]] std::string first_wrong(const Mask& mask, const Visible& visible, std::int64_t queries, std::int64_t keys,
                                      exact claimed = {}) {
  using orrery::position_interval;
  using orrery::visibility;
  std::ostringstream words;
  words << mask.name() << ": ";
  for (std::int64_t i = 0; i < queries; ++i) {
    for (std::int64_t j = 0; j < keys; ++j) {
      if (mask.visible(i, j) == visible(i, j)) continue;
      words << "query " << i << (visible(i, j) ? " must" : " must not") << " see key " << j;
      return words.str();
    }
  }
  for (std::int64_t q0 = 0; q0 < queries; ++q0) {
    for (std::int64_t q1 = q0; q1 < queries; ++q1) {
      position_interval hull;
      for (std::int64_t k0 = 0; k0 < keys; ++k0) {
        for (std::int64_t q = q0; q <= q1; ++q) {
          if (visible(q, k0)) hull = position_interval::hull(hull, {k0, k0});
        }
        std::int64_t seen = 0;
        for (std::int64_t k1 = k0; k1 < keys; ++k1) {
          for (std::int64_t q = q0; q <= q1; ++q) seen += visible(q, k1) ? 1 : 0;
          const visibility right = seen == 0                               ? visibility::none
                                   : seen == (q1 - q0 + 1) * (k1 - k0 + 1) ? visibility::all
                                                                           : visibility::some;
          const visibility said = mask.classify(q0, q1, k0, k1);
          if (said == right || (!claimed.classify && said == visibility::some)) continue;
          words << "classify(" << q0 << ", " << q1 << ", " << k0 << ", " << k1 << ") is " << static_cast<int>(said)
                << ", expected " << static_cast<int>(right);
          return words.str();
        }
      }
      if constexpr (orrery::mask_with_keys_of<Mask>) {
        // What is beyond the key sequence does not matter.
        position_interval said = mask.keys_of(q0, q1);
        said = said & position_interval{0, keys - 1};
        const bool holds = hull.empty() || (said.first <= hull.first && hull.last <= said.last);
        const bool sharp = hull.empty() ? said.empty() : said == hull;
        const bool must_be_sharp = claimed.keys_of || (q0 == q1 && orrery::detail::mask_of_intervals<Mask>);
        if (holds && (sharp || !must_be_sharp)) continue;
        words << "keys_of(" << q0 << ", " << q1 << ") is [" << said.first << ", " << said.last << "], expected ["
              << hull.first << ", " << hull.last << "]";
        return words.str();
      }
    }
  }
  if constexpr (orrery::detail::mask_of_intervals<Mask>) {
    for (std::int64_t q = 0; q < queries; ++q) {
      for (std::int64_t k = 0; k < keys; ++k) {
        if (mask.keys_of(q, q).contains(k) == visible(q, k)) continue;
        words << "keys_of(" << q << ", " << q << ") is not exactly what the query sees";
        return words.str();
      }
    }
  }
  return "";
}

}  // namespace mask_test
