// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/attention/may_see.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/relation.hpp"

namespace orrery::detail {

/// The pairs of chunks of which the mask lets a query see a key, as far as it tells (see `may_see`). The lists hold the
/// segments of every chunk of every rank, `chunks` for each rank.
template <mask Mask>
[[nodiscard]] schedule::relation relation_of(const Mask& mask, const schedule::list<segments>& queries,
                                             const schedule::list<segments>& keys, int chunks) {
  schedule::relation visible{queries.size() / chunks, chunks};
  for_each_pair_that_may_see(mask, queries, keys, [&](int query, int key) { visible.set(query, key); });
  return visible;
}

}  // namespace orrery::detail
