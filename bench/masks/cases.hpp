// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "orrery/layout/chunked.hpp"
#include "orrery/layout/dispatched.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/causal.hpp"
#include "orrery/mask/documents.hpp"
#include "orrery/mask/window.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/topology/precomputed.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/tune/balanced.hpp"
#include "orrery/tune/pack.hpp"

#include "support/document_lengths.hpp"

namespace bench {

/// Documents as those of a batch of 16,384 tokens a rank, all scaled to a sequence of `length` tokens; those that
/// shrink to nothing are left out.
inline std::vector<std::int64_t> scaled_documents(std::int64_t length, int world) {
  const std::int64_t drawn = std::int64_t{16384} * world;
  std::vector<std::int64_t> scaled;
  std::int64_t end = 0;
  std::int64_t begun = 0;
  for (const std::int64_t tokens : document_lengths::of(drawn, 0)) {
    end += tokens;
    const std::int64_t scaled_end = end * length / drawn;
    if (scaled_end > begun) scaled.push_back(scaled_end - begun);
    begun = scaled_end;
  }
  return scaled;
}

/// Calls of `group`, one for each mask: with its title, the mask, and a function that calls `row` for each operator of
/// the group. A row has a name, a topology, a layout, whether it is planned for every pair, and the number of the row
/// that it is compared with, counted from 0 and before it: its own for those that nothing is compared with.
template <class Group>
void for_each_group(int world, std::int64_t length, const Group& group) {
  using orrery::any_topology;
  constexpr bool every_pair = true;
  constexpr bool pruned = false;
  const orrery::contiguous contiguous;
  const orrery::zigzag zigzag;
  const any_topology ring{orrery::ring{}};
  const std::int64_t shard = length / world;

  group("Causal", orrery::causal{}, [&](const auto& row) {
    row("`ring`, contiguous, every pair", ring, contiguous, every_pair, 0);
    row("`ring`, contiguous", ring, contiguous, pruned, 0);
    row("`ring`, zigzag, every pair", ring, zigzag, every_pair, 2);
    row("`ring`, zigzag", ring, zigzag, pruned, 2);
    row("`half_ring`, contiguous", orrery::half_ring{}, contiguous, pruned, 2);
  });
  // Half a shard, a shard and four.
  for (const std::int64_t tokens : {shard / 2, shard, 4 * shard}) {
    const auto window = orrery::causal{} & orrery::window{.left = tokens - 1};
    group("A causal window of " + std::to_string(tokens), window, [&](const auto& row) {
      row("`ring`, contiguous, every pair", ring, contiguous, every_pair, 0);
      row("`ring`, contiguous", ring, contiguous, pruned, 0);
      row("`ring`, contiguous in 4 chunks", ring, orrery::chunked{contiguous, 4}, pruned, 0);
    });
  }
  const std::vector<std::int64_t> lengths = scaled_documents(length, world);
  const auto packed = orrery::documents{lengths} & orrery::causal{};
  group(std::to_string(lengths.size()) + " packed documents, causal", packed, [&](const auto& row) {
    row("`ring`, zigzag, every pair", ring, zigzag, every_pair, 0);
    row("`ring`, zigzag", ring, zigzag, pruned, 0);
    row("`ring`, `balanced`", ring, orrery::balanced(packed, world, {.length = length}), pruned, 0);
    row("`pack`, contiguous", orrery::precomputed{"packed", orrery::pack(lengths, world).work}, contiguous, pruned, 0);
  });
}

}  // namespace bench
