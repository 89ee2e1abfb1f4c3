// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <span>

#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// Splits every message that carries operands at home on its sender into one for each tensor; `sides[t]` says to which
/// side's blocks tensor t belongs. Both ends of a message split it alike, since they see the same blocks. Within a step
/// the exchanges of the first tensor come first. Each tensor has lanes of its own, so that the order of messages in a
/// lane stays what it was proven to be. Slots, tiles and steps do not change.
///
/// Takes a program as `finish` leaves it, whose exchanges carry whole blocks. Costs time linear in it.
[[nodiscard]] inline program split_by_tensor(const program& p, std::span<const side> sides) {
  const auto tensors = static_cast<int>(sides.size());
  program out = p;
  out.exchanges = {};
  out.sent = {};
  out.received = {};
  out.completions = {};
  out.collectives = {};

  // True if the part of a message for exchange::tensor t carries this block. `own`: all of the message's blocks are its
  // sender's own.
  const auto carries = [&](int t, const block& b, bool own) {
    return own ? t != every_tensor && b.side == sides[static_cast<std::size_t>(t - 1)] : t == every_tensor;
  };
  list<list<int>> parts(p.exchanges.size());  // of each exchange
  for (step& now : out.steps) {
    const range posted = now.exchanges;
    now.exchanges = {out.exchanges.size(), 0};
    for (int t = every_tensor; t <= tensors; ++t) {
      for (const int e : posted) {
        const exchange& x = p.exchanges[e];
        bool sends_own = x.payload == payload::operand;
        bool receives_own = sends_own;
        for (const block& sent : p.sent_by(x)) sends_own = sends_own && sent.shard == p.rank;
        for (const held_block& received : p.received_by(x))
          receives_own = receives_own && received.block.shard == x.from;

        exchange part = x;
        part.sent = {out.sent.size(), 0};
        part.received = {out.received.size(), 0};
        for (const block& sent : p.sent_by(x))
          if (carries(t, sent, sends_own)) out.sent.push_back(sent);
        for (const held_block& received : p.received_by(x))
          if (carries(t, received.block, receives_own)) out.received.push_back(received);
        part.sent.count = out.sent.size() - part.sent.first;
        part.received.count = out.received.size() - part.received.first;
        if (part.sent.count == 0 && part.received.count == 0) continue;
        if (part.sent.count == 0) part.to = no_rank;
        if (part.received.count == 0) part.from = no_rank;
        part.lane = x.lane * (tensors + 1) + t;
        part.tensor = t;
        parts[e].push_back(out.exchanges.size());
        out.exchanges.push_back(part);
      }
    }
    now.exchanges.count = out.exchanges.size() - now.exchanges.first;
  }

  const auto rename = [&](range& completions) {
    const range before = completions;
    completions.first = out.completions.size();
    for (const int c : before)
      for (const int e : parts[p.completions[c]]) out.completions.push_back(e);
    completions.count = out.completions.size() - completions.first;
  };
  for (step& now : out.steps) rename(now.completions);
  rename(out.final_completions);

  for (const collective& c : p.collectives) {
    for (int t = every_tensor; t <= tensors; ++t) {
      collective part = c;
      part.exchanges = {0, 0};
      for (const int e : c.exchanges) {
        for (const int n : parts[e]) {
          if (out.exchanges[n].tensor != t) continue;
          if (part.exchanges.count++ == 0) part.exchanges.first = n;
        }
      }
      if (part.exchanges.count == c.exchanges.count && part.exchanges.count > 0) out.collectives.push_back(part);
    }
  }
  return out;
}

}  // namespace orrery::schedule
