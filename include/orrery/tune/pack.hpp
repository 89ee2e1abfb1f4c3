// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <span>

#include "orrery/schedule/assignment.hpp"
#include "orrery/topology/precomputed.hpp"  // IWYU pragma: export
#include "orrery/tune/detail/document_work.hpp"
#include "orrery/tune/detail/work_balance.hpp"

namespace orrery {

/// How `pack` plans a batch.
struct pack_options {
  /// Tokens of the batch, where the documents are followed by padding. 0: the documents fill it.
  std::int64_t length = 0;
  /// Within a document a query sees only the keys up to its own position.
  bool causal = true;
  /// Into how many chunks each rank's shard is cut. More balance better, and take longer to plan and to prove.
  int chunks = 8;
  /// The busiest rank should have no more than this many thousandths of the average work. A goal: few tokens cannot
  /// always be divided so (see `packed_plan::imbalance`).
  int tolerance = 1050;
  /// What a token of a block weighs on the wire, relative to each other: a query operand, a key operand (K and V), and
  /// a query partial. The default is that of one query head for each key head and 32-bit storage. With g query heads
  /// for each key head queries and partials weigh g times as much, and with 16-bit storage partials twice that.
  int query_weight = 1;
  int key_weight = 2;
  int partial_weight = 1;
};

/// A plan for one batch of packed documents.
struct packed_plan {
  assignment work;
  std::int64_t visible_pairs = 0;  ///< of all ranks
  std::int64_t busiest_pairs = 0;  ///< visible pairs that the busiest rank computes

  /// The busiest rank's work divided by the average, 1 if there is none.
  [[nodiscard]] double imbalance() const noexcept {
    if (visible_pairs == 0) return 1;
    return static_cast<double>(busiest_pairs) * work.world / static_cast<double>(visible_pairs);
  }
};

/// Plans attention over a batch of packed documents: tokens stay where a contiguous layout puts them, and ranks that
/// have more visible pairs than the average hand tiles over to ranks that have fewer.
///
///     const std::vector<std::int64_t> lengths{30000, 500, 1200, ...};   // of the documents, in their order
///     const orrery::packed_plan plan = orrery::pack(lengths, world.size());
///     orrery::attention<orrery::precomputed, orrery::flash<float>> attend{
///         world, shape, orrery::documents{lengths} & orrery::causal{}, orrery::contiguous{},
///         orrery::precomputed{"packed", plan.work}};
///
/// Each shard is cut into chunks. What the queries of a shard compute with one chunk of keys is a tile. Where few
/// queries see many keys of another rank, that rank computes their tiles, if it has the time: it costs fewer bytes.
/// Then ranks above the tolerance give tiles to ranks below the average, the busiest first, and of those that would fit
/// the ones that cost the fewest bytes for a pair. What is still above the tolerance goes by single pairs of chunks.
/// The result follows from the arguments alone, in integers: all ranks, compilers and machines get the same.
///
/// Time: for each tile that moves, about as many tries as there are ranks, each linear in the tiles of a rank. Throws
/// `std::invalid_argument` for a length that is not positive, lengths that add up to more than `length`, or options out
/// of range.
[[nodiscard]] inline packed_plan pack(std::span<const std::int64_t> lengths, int world,
                                      const pack_options& options = {}) {
  const detail::token_weights weights{options.query_weight, options.key_weight, options.partial_weight};
  detail::check_pack(lengths, world, options.length, options.chunks, options.tolerance, weights);
  const detail::document_work work{lengths, world, options.length, options.chunks, options.causal};
  detail::work_balance balance{work, weights};
  balance.level(options.tolerance);
  packed_plan plan;
  plan.work = balance.tiles();
  plan.visible_pairs = work.pairs();
  plan.busiest_pairs = balance.busiest_pairs();
  return plan;
}

}  // namespace orrery
