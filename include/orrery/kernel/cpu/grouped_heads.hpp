// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <span>

#include "orrery/attention/tile.hpp"
#include "orrery/layout/segment.hpp"

namespace orrery::detail {

/// The queries of a call, of each head.
template <class S, class A>
[[nodiscard]] std::int64_t tokens_of(std::span<const forward_queries<S, A>> queries) noexcept {
  std::int64_t sum = 0;
  for (const auto& block : queries) sum += block.positions.tokens();
  return sum;
}

/// How many query heads of a call read each of its key heads; 0 if not as many each.
template <class S, class A>
[[nodiscard]] std::int64_t query_heads_per_key_head(std::span<const forward_queries<S, A>> queries,
                                                    const head_map& heads) noexcept {
  const std::int64_t group = heads.queries_per_key_head;
  const std::int64_t all = queries.empty() ? 0 : queries.front().q.heads;
  if (all < 1) return 0;
  if (heads.key_head(0) == heads.key_head(all - 1)) return all;
  return heads.first_query_head % group == 0 && all % group == 0 ? group : 0;
}

/// A block of one token, as if the `group` query heads that share a key head were tokens at its position, and there
/// were a query head for each key head.
template <class S, class A>
[[nodiscard]] forward_queries<S, A> heads_as_tokens(forward_queries<S, A> block, std::int64_t group) {
  const auto regroup = [group](auto& view) {
    view.sequence = group;
    view.sequence_stride = view.head_stride;
    view.heads /= group;
    view.head_stride *= group;
  };
  regroup(block.q);
  regroup(block.out);
  regroup(block.lse);
  const std::int64_t position = block.positions.position(0);
  block.positions = {};
  block.positions.add({position, group, 1, 0});
  return block;
}

}  // namespace orrery::detail
