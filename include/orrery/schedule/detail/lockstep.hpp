// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// The messages that a rank receives, in the order in which they are posted: from whom, in which lane, and when the
/// sender posts the message (`unmatched` if it does not).
class matched_messages {
 public:
  static constexpr int unmatched = -1;

  /// `programs` holds those of the first `period` ranks, of which those of the others are rotations.
  constexpr matched_messages(const list<program>& programs, int period)
      : programs_{programs}, world_{programs.count}, period_{period} {
    for (int rank = 0; rank < period; ++rank) {
      for (const exchange& x : programs.items[rank].exchanges) lanes_ = x.lane >= lanes_ ? x.lane + 1 : lanes_;
    }
    const int channels = world_ * lanes_;
    first_ = list<int>(period * (channels + 1));
    sends_ = list<list<int>>(period);
    for (int rank = 0; rank < period; ++rank) {
      const program& p = programs.items[rank];
      int* const first = first_.items + rank * (channels + 1);
      for (const exchange& x : p.exchanges) {
        if (is_channel(x.to, x.lane) && x.sent.count > 0) ++first[x.to * lanes_ + x.lane];
      }
      for (int channel = 0, before = 0; channel <= channels; ++channel) before = first[channel] += before;
      sends_.items[rank] = list<int>(p.exchanges.count);
      for (int e = p.exchanges.count - 1; e >= 0; --e) {
        const exchange& x = p.exchanges.items[e];
        if (is_channel(x.to, x.lane) && x.sent.count > 0) sends_.items[rank].items[--first[x.to * lanes_ + x.lane]] = e;
      }
    }
  }

  /// Calls `found(exchange of the rank, exchange of its sender, or null)` for each exchange in which a rank of the
  /// period receives.
  template <class Found>
  constexpr void each(int rank, const Found& found) const {
    const program& p = programs_.items[rank];
    list<int> met(world_ * lanes_);
    for (const exchange& y : p.exchanges) {
      if (y.received.count == 0) continue;
      const exchange* sent = nullptr;
      if (is_channel(y.from, y.lane)) {
        const int representative = y.from % period_;
        const int moved = y.from - representative;
        const int receiver = rank - moved < 0 ? rank - moved + world_ : rank - moved;
        const int* const channel = first_.items + representative * (world_ * lanes_ + 1) + receiver * lanes_ + y.lane;
        const int at = channel[0] + met.items[y.from * lanes_ + y.lane]++;
        if (at < channel[1]) {
          const program& sender = programs_.items[representative];
          sent = sender.exchanges.items + sends_.items[representative].items[at];
        }
      }
      found(y, sent);
    }
  }

 private:
  [[nodiscard]] constexpr bool is_channel(int peer, int lane) const {
    return peer >= 0 && peer < world_ && lane >= 0 && lane < lanes_;
  }

  const list<program>& programs_;
  int world_;
  int period_;
  int lanes_ = 1;
  list<int> first_;        // of each rank and channel: the index of its first message in `sends_`
  list<list<int>> sends_;  // of each rank, its exchanges by channel
};

/// True if every exchange overlaps, in steps, with its counterpart. Then a step has the same number on all ranks.
/// Messages without a counterpart are `verify`'s to name.
[[nodiscard]] constexpr bool in_lockstep(const list<program>& programs, int period) {
  const matched_messages messages{programs, period};
  bool overlap = true;
  for (int rank = 0; rank < period; ++rank) {
    messages.each(rank, [&](const exchange& received, const exchange* sent) {
      if (sent == nullptr) return;
      overlap = overlap && sent->posted < received.complete_before && received.posted < sent->complete_before;
    });
  }
  return overlap;
}

/// Inserts idle steps into the programs of all ranks, so that every exchange overlaps with its counterpart: each step
/// gets the number of the earliest moment at which it can begin, if all take equally long and no send completes before
/// it is received. Changes nothing if the ranks wait for each other forever. For ranks that are not in lockstep, which
/// is rare: costs up to steps² for each rank.
constexpr void bring_into_lockstep(list<program>& programs) {
  const int world = programs.count;
  for (const program& p : programs) {
    for (const exchange& x : p.exchanges) {
      if (x.posted < 0 || x.complete_before <= x.posted || x.complete_before > p.steps.count) return;  // to be refused
    }
  }
  struct wait {
    int rank, before;      // this rank enters the step `before` only after ...
    int peer, peer_posts;  // ... that rank has entered this one
  };
  list<list<wait>> waits(world);
  const matched_messages messages{programs, world};
  for (int rank = 0; rank < world; ++rank) {
    messages.each(rank, [&](const exchange& received, const exchange* sent) {
      if (sent == nullptr) return;
      waits[rank].push_back({rank, received.complete_before, received.from, sent->posted});
      waits[received.from].push_back({received.from, sent->complete_before, rank, received.posted});
    });
  }
  list<list<int>> times(world);  // of each rank, the times of the steps that it can enter
  for (list<int>& of_rank : times) of_rank.push_back(0);
  for (bool moved = true; moved;) {
    moved = false;
    for (int rank = 0; rank < world; ++rank) {
      while (times[rank].count <= programs[rank].steps.count) {
        const int step = times[rank].count;
        int time = times[rank].back() + 1;
        for (const wait& one : waits[rank]) {
          if (one.before != step || time < 0) continue;
          const list<int>& peer = times[one.peer];
          if (one.peer_posts >= peer.count) {
            time = -1;
          } else if (peer[one.peer_posts] + 1 > time) {
            time = peer[one.peer_posts] + 1;
          }
        }
        if (time < 0) break;
        times[rank].push_back(time);
        moved = true;
      }
    }
  }
  for (int rank = 0; rank < world; ++rank) {
    if (times[rank].count <= programs[rank].steps.count) return;
  }
  for (int rank = 0; rank < world; ++rank) {
    program& p = programs[rank];
    const list<int>& time = times[rank];
    list<step> steps;
    for (int i = 0; i < p.steps.count; ++i) {
      const range none_yet{p.steps[i].exchanges.first, 0};
      while (steps.count < time[i]) steps.push_back({{0, 0}, none_yet, {{0, 0}, {0, 0}}});
      steps.push_back(p.steps[i]);
    }
    while (steps.count < time[p.steps.count]) steps.push_back({{0, 0}, {p.exchanges.count, 0}, {{0, 0}, {0, 0}}});
    for (exchange& x : p.exchanges) {
      x.posted = time[x.posted];
      x.complete_before = time[x.complete_before];
    }
    p.steps = static_cast<list<step>&&>(steps);
  }
}

}  // namespace orrery::schedule
