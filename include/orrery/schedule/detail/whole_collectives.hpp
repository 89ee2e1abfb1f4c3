// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/detail/block_flow.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// The collectives of unpruned programs of which no rank of the group loses a block.
class whole_collectives {
 public:
  /// `sent` and `received` say which blocks of messages stay, in the numbering of `flow`.
  constexpr whole_collectives(const block_flow& flow, const list<bool>& sent, const list<bool>& received)
      : flow_{flow}, members_(flow.programs.count) {
    const int world = flow.programs.count;
    for (int rank = 0; rank < world; ++rank) members_[rank] = list<int>(flow.programs[rank].collectives.count);
    for (int rank = 0; rank < world; ++rank) {
      const list<collective>& all = flow.programs[rank].collectives;
      for (int index = 0; index < all.count; ++index) {
        const int there = at_first_rank(rank, index);
        if (there != none && has_all(rank, all[index], sent, received)) ++members_[all[index].first_rank][there];
      }
    }
  }

  /// True if the collective `index` of a rank is one of them.
  [[nodiscard]] constexpr bool contains(int rank, int index) const {
    const collective& c = flow_.programs[rank].collectives[index];
    const int there = at_first_rank(rank, index);
    return there != none && members_[c.first_rank][there] == c.ranks;
  }

 private:
  static constexpr int none = block_flow::none;

  /// True if the rank's part of a collective has every block that it had.
  [[nodiscard]] constexpr bool has_all(int rank, const collective& c, const list<bool>& sent,
                                       const list<bool>& received) const {
    const program& p = flow_.programs[rank];
    for (int e = c.exchanges.first; e < c.exchanges.end(); ++e) {
      const exchange& x = p.exchanges[e];
      for (int s = x.sent.first; s < x.sent.end(); ++s)
        if (!sent[flow_.first_sent[rank] + s]) return false;
      for (int n = x.received.first; n < x.received.end(); ++n)
        if (!received[flow_.first_received[rank] + n]) return false;
    }
    return true;
  }

  /// The index at the first rank of its group of the collective `index` of a rank: the same group's, as often met.
  [[nodiscard]] constexpr int at_first_rank(int rank, int index) const {
    const list<collective>& all = flow_.programs[rank].collectives;
    const collective& c = all[index];
    const auto same = [&](const collective& other) {
      return other.kind == c.kind && other.first_rank == c.first_rank && other.ranks == c.ranks &&
             other.rank_stride == c.rank_stride;
    };
    int before = 0;
    for (int i = 0; i < index; ++i) before += same(all[i]) ? 1 : 0;
    if (c.first_rank < 0 || c.first_rank >= flow_.programs.count) return none;
    const list<collective>& there = flow_.programs[c.first_rank].collectives;
    for (int i = 0; i < there.count; ++i)
      if (same(there[i]) && before-- == 0) return i;
    return none;
  }

  const block_flow& flow_;
  list<list<int>> members_;  // of each collective, at its group's first rank: those that keep all their blocks
};

}  // namespace orrery::schedule
