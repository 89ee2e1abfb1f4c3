// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/verify/detail/fault_clue.hpp"
#include "orrery/verify/detail/proof_subject.hpp"
#include "orrery/verify/verdict.hpp"

namespace orrery::detail {

/// Searches the messages of a world for what explains a fault. The proof itself does without: it costs time only where
/// there is a fault. Ranks, shards and slices are those of the whole world.
class message_search {
 public:
  constexpr explicit message_search(proof_subject& subject)
      : subject_{subject}, programs_{subject.programs}, world_{subject.world}, period_{subject.period} {}

  /// The first block of what exchange `e` of `rank` sends, or receives, or of a later one of them.
  [[nodiscard]] constexpr block block_of(int rank, int e, bool sends, int index = 0) const {
    const program& p = program_at(rank);
    const exchange& x = p.exchanges[e];
    const block& b = sends ? p.sent_by(x)[index] : p.received_by(x)[index].block;
    return {b.side, b.chunk, (b.shard + moved(rank)) % world_,
            ((b.slice + moved(rank)) % p.slices + p.slices) % p.slices};
  }

  /// Refuses message `index` of those from `sender` to `receiver` in a lane, whose two ends do not agree. If one end
  /// has more messages than the other, and goes on with the other's after leaving some out, those are what is wrong.
  constexpr bool refuse_message(int sender, int receiver, int lane, int index) {
    const list<int> sends = channel(sender, receiver, lane, true);
    const list<int> receives = channel(receiver, sender, lane, false);
    for (int later = index + 1; later <= index + sends.size() - receives.size() && later < sends.size(); ++later)
      if (agree(sender, sends[later], receiver, receives[index]))
        return refuse_end(sender, sends[index], receiver, true, receives[index]);
    for (int later = index + 1; later <= index + receives.size() - sends.size() && later < receives.size(); ++later)
      if (agree(sender, sends[index], receiver, receives[later]))
        return refuse_end(receiver, receives[index], sender, false, sends[index]);
    return refuse_blocks(sender, sends[index], receiver, receives[index]);
  }

  /// Refuses an exchange of `rank` whose peer has no counterpart to it: instead it goes on with its exchange `next`.
  constexpr bool refuse_end(int rank, int e, int peer, bool sends, int next = none) {
    const exchange& x = exchange_at(rank, e);
    subject_.refuse(sends ? fault::send_unmatched : fault::receive_unmatched, rank, x.posted, block_of(rank, e, sends),
                    peer);
    verdict& found = subject_.found;
    found.lane = x.lane;
    found.payload = x.payload;
    found.clue = counterpart_elsewhere(rank, e, peer, sends);
    if (found.clue.found == fault_clue::kind::none && next != none)
      found.clue = clue(fault_clue::kind::message_too_few, peer, next, !sends);
    return false;
  }

  /// Refuses the use of an operand that is not on `rank` in this step.
  constexpr bool refuse_operand(int rank, int step, const block& what) {
    subject_.refuse(fault::operand_missing, rank, step, what);
    // Received, but not in time.
    const exchange* earliest = nullptr;
    int index = none;
    const program& p = program_at(rank);
    for (int e = 0; e < p.exchanges.size(); ++e) {
      const exchange& x = p.exchanges.items[e];
      if (x.payload != payload::operand || x.complete_before <= step || !names(rank, e, false, what)) continue;
      if (earliest != nullptr && earliest->complete_before <= x.complete_before) continue;
      earliest = &x;
      index = e;
    }
    if (earliest != nullptr) {
      subject_.found.clue = clue(fault_clue::kind::in_flight, rank, index, false);
      subject_.found.clue.rank = peer_of(rank, earliest->from);
      return false;
    }
    // Sent, but not received.
    int distance = 0;
    for (int sender = 0; sender < world_; ++sender) {
      const program& q = program_at(sender);
      for (int e = 0; e < q.exchanges.size(); ++e) {
        const exchange& x = q.exchanges.items[e];
        if (x.sent.count == 0 || peer_of(sender, x.to) != rank || x.payload != payload::operand) continue;
        if (!names(sender, e, true, what)) continue;
        const int apart = x.posted < step ? step - x.posted : x.posted - step;
        if (subject_.found.clue.found != fault_clue::kind::none && apart >= distance) continue;
        subject_.found.clue = clue(fault_clue::kind::not_received, sender, e, true);
        distance = apart;
      }
    }
    return false;
  }

 private:
  static constexpr int none = -1;

  [[nodiscard]] constexpr const program& program_at(int rank) const { return programs_.items[rank % period_]; }
  [[nodiscard]] constexpr const exchange& exchange_at(int rank, int e) const {
    return program_at(rank).exchanges.items[e];
  }
  /// By how much rank's program is moved on.
  [[nodiscard]] constexpr int moved(int rank) const { return rank - rank % period_; }
  [[nodiscard]] constexpr int peer_of(int rank, int written) const {
    return written < 0 ? written : (written + moved(rank)) % world_;
  }

  [[nodiscard]] constexpr bool names(int rank, int e, bool sends, const block& what) const {
    const exchange& x = exchange_at(rank, e);
    const int count = sends ? x.sent.count : x.received.count;
    for (int i = 0; i < count; ++i)
      if (block_of(rank, e, sends, i) == what) return true;
    return false;
  }

  /// The exchanges in which `rank` sends to `peer`, or receives from it, in a lane.
  [[nodiscard]] constexpr list<int> channel(int rank, int peer, int lane, bool sends) const {
    list<int> all;
    const program& p = program_at(rank);
    for (int e = 0; e < p.exchanges.size(); ++e) {
      const exchange& x = p.exchanges.items[e];
      if (x.lane == lane && (sends ? x.sent.count : x.received.count) > 0 &&
          peer_of(rank, sends ? x.to : x.from) == peer)
        all.push_back(e);
    }
    return all;
  }

  [[nodiscard]] constexpr bool agree(int sender, int e, int receiver, int f) const {
    const exchange& x = exchange_at(sender, e);
    const exchange& y = exchange_at(receiver, f);
    return x.payload == y.payload && x.sent.count == y.received.count && first_difference(sender, e, receiver, f) < 0;
  }
  /// Index of the first block that differs among those that both messages have; or none.
  [[nodiscard]] constexpr int first_difference(int sender, int e, int receiver, int f) const {
    const int sent = exchange_at(sender, e).sent.count;
    const int received = exchange_at(receiver, f).received.count;
    for (int i = 0; i < sent && i < received; ++i)
      if (!(block_of(sender, e, true, i) == block_of(receiver, f, false, i))) return i;
    return none;
  }

  constexpr bool refuse_blocks(int sender, int e, int receiver, int f) {
    const exchange& x = exchange_at(sender, e);
    const exchange& y = exchange_at(receiver, f);
    const int difference = first_difference(sender, e, receiver, f);
    const int index = difference == none ? 0 : difference;
    subject_.refuse(fault::blocks_disagree, receiver, y.posted, block_of(receiver, f, false, index), sender);
    verdict& found = subject_.found;
    found.lane = y.lane;
    found.payload = y.payload;
    found.clue = clue(difference != none       ? fault_clue::kind::other_block
                      : x.payload != y.payload ? fault_clue::kind::other_payload
                                               : fault_clue::kind::other_count,
                      sender, e, true, index);
    found.clue.expected = y.received.count;
    return false;
  }

  [[nodiscard]] constexpr fault_clue clue(fault_clue::kind kind, int rank, int e, bool sends, int index = 0) const {
    const exchange& x = exchange_at(rank, e);
    return {kind,
            rank,
            x.posted,
            x.lane,
            block_of(rank, e, sends, index),
            x.payload,
            x.complete_before,
            sends ? x.sent.count : x.received.count};
  }

  /// Where the counterpart of a message may be that has none: at the peer, but in another lane or with another rank; or
  /// at another rank. Of several, the one that is posted next to it.
  [[nodiscard]] constexpr fault_clue counterpart_elsewhere(int rank, int e, int peer, bool sends) const {
    using kind = fault_clue::kind;
    const exchange& x = exchange_at(rank, e);
    fault_clue best;
    int best_distance = 0;
    for (int other = 0; other < world_; ++other) {
      const program& p = program_at(other);
      for (int f = 0; f < p.exchanges.size() && other != rank; ++f) {
        const exchange& y = p.exchanges.items[f];
        if (y.payload != x.payload || (sends ? y.received.count : y.sent.count) == 0) continue;
        const int names = peer_of(other, sends ? y.from : y.to);
        if (names == rank ? other == peer && y.lane == x.lane : other != peer) continue;
        if (!(sends ? agree(rank, e, other, f) : agree(other, f, rank, e))) continue;
        // Only where it has no counterpart itself.
        if (channel(other, names, y.lane, !sends).size() <= channel(names, other, y.lane, sends).size()) continue;
        const kind is = names != rank ? kind::other_peer : other == peer ? kind::other_lane : kind::other_partner;
        const int distance = y.posted < x.posted ? x.posted - y.posted : y.posted - x.posted;
        if (best.found != kind::none && (is > best.found || (is == best.found && distance >= best_distance))) continue;
        best = clue(is, other, f, !sends);
        if (is == kind::other_peer) best.rank = names;
        best_distance = distance;
      }
    }
    return best;
  }

  proof_subject& subject_;
  const list<program>& programs_;
  int world_;
  int period_;
};

}  // namespace orrery::detail
