// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/verify/detail/message_search.hpp"
#include "orrery/verify/detail/proof_subject.hpp"
#include "orrery/verify/verdict.hpp"

namespace orrery::detail {

/// Proves all messages of a world: each has its counterpart, and all ranks reach their end.
class message_proof {
 public:
  /// `lanes` is one more than the highest lane of any exchange.
  constexpr message_proof(proof_subject& subject, int lanes)
      : subject_{subject}, programs_{subject.programs}, world_{subject.world}, period_{subject.period}, lanes_{lanes} {}

  /// True if the k-th message from rank a to rank b in a lane, and the k-th that b awaits from a, name the same blocks.
  constexpr bool match() {
    receives_ = list<receives>(period_);
    counterparts_ = list<counterparts>(period_);
    for (int rank = 0; rank < period_; ++rank) {
      index_receives(rank);
      counterparts_[rank].receiver_posts = list<int>(programs_[rank].exchanges.count);
      counterparts_[rank].sender_posts = list<int>(programs_[rank].exchanges.count);
    }
    for (int rank = 0; rank < period_; ++rank) {
      if (!match_sends(rank)) return false;
    }
    for (const program& p : programs_) {
      const exchange* x = p.exchanges.items;
      const int* const sender_posts = counterparts_[p.rank].sender_posts.items;
      for (int e = 0; e < p.exchanges.count; ++e, ++x)
        if (x->received.count > 0 && sender_posts[e] == 0)
          return message_search{subject_}.refuse_end(p.rank, e, x->from, false);
    }
    return true;
  }

  /// True if all exchanges overlap, in steps, with their counterparts. Only then is progress proven without all
  /// programs.
  [[nodiscard]] constexpr bool in_step() const noexcept { return in_step_; }

  /// True if all ranks reach their end even if no send completes before it is received. To be asked after `match`, if
  /// the ranks are not in step, of finished programs of all ranks.
  constexpr bool advance() {
    const int world = programs_.count;
    list<int> entered(world);
    int peer = 0;
    for (bool moved = true; moved;) {
      moved = false;
      for (int rank = 0; rank < world; ++rank) {
        while (entered[rank] < programs_[rank].steps.count && may_enter(rank, entered[rank] + 1, entered, peer)) {
          ++entered[rank];
          moved = true;
        }
      }
    }
    for (int rank = 0; rank < world; ++rank) {
      if (entered[rank] == programs_[rank].steps.count) continue;
      may_enter(rank, entered[rank] + 1, entered, peer);
      return subject_.refuse(fault::deadlock, rank, entered[rank] + 1, {}, peer);
    }
    return true;
  }

 private:
  /// The exchanges in which a rank receives, by sender and lane: those of (sender, lane) are
  /// exchanges[first[sender * lanes + lane]] up to the next entry of `first`, in the order in which they are posted.
  struct receives {
    list<int> first;
    list<int> exchanges;
  };

  /// For each exchange of a rank, 1 + the step in which each end's counterpart is posted (0: there is no such end).
  struct counterparts {
    list<int> receiver_posts;
    list<int> sender_posts;
  };

  constexpr void index_receives(int rank) {
    const program& p = programs_.items[rank];
    const exchange* const exchanges = p.exchanges.items;
    const int count = p.exchanges.count;
    receives& index = receives_.items[rank];
    const int channels = world_ * lanes_;
    index.first = list<int>(channels + 1);
    index.exchanges = list<int>(count);
    int* const first = index.first.items;
    for (int e = 0; e < count; ++e)
      if (exchanges[e].received.count > 0) ++first[exchanges[e].from * lanes_ + exchanges[e].lane];
    for (int channel = 0, before = 0; channel <= channels; ++channel) before = first[channel] += before;
    int* const indexed = index.exchanges.items;
    for (int e = count - 1; e >= 0; --e)
      if (exchanges[e].received.count > 0) indexed[--first[exchanges[e].from * lanes_ + exchanges[e].lane]] = e;
  }

  constexpr bool match_sends(int rank) {
    const program& p = programs_.items[rank];
    list<int> messages(world_ * lanes_);
    int* const message = messages.items;
    const int count = p.exchanges.count;
    for (int e = 0; e < count; ++e) {
      const exchange& x = p.exchanges.items[e];
      if (x.sent.count == 0) continue;
      const int representative = x.to % period_;
      const int moved = x.to - representative;  // the receiver's program is the representative's, moved on by this
      const int sender = rank - moved < 0 ? rank - moved + world_ : rank - moved;
      const int* const channel = receives_.items[representative].first.items + sender * lanes_ + x.lane;
      const int at = channel[0] + message[x.to * lanes_ + x.lane]++;
      if (at >= channel[1]) return message_search{subject_}.refuse_end(rank, e, x.to, true);
      const int counterpart = receives_.items[representative].exchanges.items[at];
      const exchange& y = programs_.items[representative].exchanges.items[counterpart];
      const held_block* const received = programs_.items[representative].received.items + y.received.first;
      const block* const sent = p.sent.items + x.sent.first;
      bool agree = x.payload == y.payload && x.sent.count == y.received.count;
      for (int b = 0; agree && b < x.sent.count; ++b)
        agree = received[b].block.side == sent[b].side && received[b].block.chunk == sent[b].chunk &&
                (received[b].block.shard + moved - sent[b].shard) % world_ == 0 &&
                (received[b].block.slice + moved - sent[b].slice) % p.slices == 0;
      if (!agree) return message_search{subject_}.refuse_message(rank, x.to, x.lane, at - channel[0]);
      counterparts_.items[rank].receiver_posts.items[e] = 1 + y.posted;
      counterparts_.items[representative].sender_posts.items[counterpart] = 1 + x.posted;
      if (x.posted >= y.complete_before || y.posted >= x.complete_before) in_step_ = false;
    }
    return true;
  }

  /// True if the rank may begin `step`, with the others where they are. If not, `peer` is whom it waits for.
  constexpr bool may_enter(int rank, int step, const list<int>& entered, int& peer) const {
    const program& p = programs_.items[rank];
    for (const int e : p.completed_before(step)) {
      const exchange& x = p.exchanges[e];
      if (x.sent.count > 0 && entered[x.to] + 1 < counterparts_[rank].receiver_posts[e]) {
        peer = x.to;
        return false;
      }
      if (x.received.count > 0 && entered[x.from] + 1 < counterparts_[rank].sender_posts[e]) {
        peer = x.from;
        return false;
      }
    }
    return true;
  }

  proof_subject& subject_;
  const list<program>& programs_;
  int world_;
  int period_;
  int lanes_;
  list<receives> receives_;
  list<counterparts> counterparts_;
  bool in_step_ = true;
};

}  // namespace orrery::detail
