// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "orrery/detail/integer_range.hpp"
#include "orrery/detail/number_digest.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"

namespace orrery {

/// A layout that cuts the sequence into equal pieces and gives each to the rank that a list names. Every rank owns as
/// many pieces: they are the chunks of its shard, in increasing order. (The chunk dispatch of MagiAttention.)
///
///     const std::vector<int> owners{0, 1, 2, 3, 3, 2, 1, 0};  // of the pieces, in their order: this is zigzag
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{
///         world, shape, orrery::causal{}, orrery::dispatched{4, owners}};
///
/// `balanced` finds owners for a mask. Pieces are those of `contiguous::piece`: their lengths differ by one token at
/// most, and a sequence of fewer tokens than pieces has empty ones. Queries and keys are cut alike, whatever their
/// lengths.
class dispatched {
 public:
  /// `owners` are ranks, 0 to `world` - 1. Throws `std::invalid_argument` if `world` is less than 1, if an owner is not
  /// a rank, if not all ranks own equally many pieces, at least one, or if there are more than 2^16 - 1 pieces a rank.
  template <detail::integer_range Owners>
  constexpr dispatched(int world, const Owners& owners) : world_{world} {
    if (world < 1) refuse("world is " + std::to_string(world) + ", expected at least 1");
    schedule::list<int> of_rank{world};
    int pieces = 0;
    for (const auto owner : owners) {
      if (std::cmp_less(owner, 0) || std::cmp_greater_equal(owner, world)) {
        refuse("owners[" + std::to_string(pieces) + "] is " + std::to_string(owner) + ", expected a rank, 0 to " +
               std::to_string(world - 1));
      }
      ++of_rank[static_cast<int>(owner)];
      ++pieces;
    }
    if (pieces == 0) refuse("owners is empty, expected a rank for each piece");
    chunks_ = of_rank[0];
    if (chunks_ > schedule::most_chunks) {
      refuse("rank 0 owns " + std::to_string(chunks_) + " pieces, expected at most " +
             std::to_string(schedule::most_chunks));
    }
    for (int rank = 0; rank < world; ++rank) {
      if (of_rank[rank] > 0 && of_rank[rank] == chunks_) continue;
      refuse("rank " + std::to_string(rank) + " owns " + std::to_string(of_rank[rank]) + " of " +
             std::to_string(pieces) + " pieces and rank 0 " + std::to_string(chunks_) +
             ", expected equally many for each rank, at least one");
    }
    pieces_ = schedule::list<int>{pieces};
    schedule::list<int> owned{world};
    int piece = 0;
    for (const auto owner : owners) {
      const int rank = static_cast<int>(owner);
      pieces_[rank * chunks_ + owned[rank]++] = piece++;
    }
  }

  /// Pieces that each rank owns. Throws `std::invalid_argument` for another world than the one of construction.
  [[nodiscard]] constexpr int chunks(int world, std::int64_t /*length*/) const {
    if (world != world_) {
      refuse("the owners are ranks of a world of " + std::to_string(world_) + ", and this one has " +
             std::to_string(world) + "; find owners for it");
    }
    return chunks_;
  }
  [[nodiscard]] constexpr segments chunk(int rank, int chunk, int world, std::int64_t length) const {
    const std::int64_t pieces = std::int64_t{world} * chunks(world, length);
    segments some;
    some.add(contiguous::piece(pieces_[rank * chunks_ + chunk], pieces, length));
    return some;
  }
  /// On devices, too, where `zigzag`, say, is run whole.
  [[nodiscard]] static constexpr bool asks_for_chunks() noexcept { return true; }
  /// "dispatched<4 ranks, 2 chunks, digest 3e12ab...>".
  [[nodiscard]] std::string name() const {
    return "dispatched<" + std::to_string(world_) + (world_ == 1 ? " rank, " : " ranks, ") + std::to_string(chunks_) +
           (chunks_ == 1 ? " chunk, digest " : " chunks, digest ") + detail::digest_text(pieces_) + ">";
  }

  constexpr bool operator==(const dispatched&) const = default;

 private:
  [[noreturn]] static void refuse(const std::string& why) { throw std::invalid_argument{"orrery: dispatched: " + why}; }

  int world_;
  int chunks_ = 1;
  schedule::list<int> pieces_;  // of each rank
};

}  // namespace orrery
