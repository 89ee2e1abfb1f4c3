// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

#include "orrery/schedule/program.hpp"

namespace orrery::schedule {

/// How a rank's own operands leave it, if they consist of several tensors (a key block: K and V).
///
/// - `per_block`: a block is one message. The fewest messages.
/// - `per_tensor`: a tensor of a block is a message of its own, so that it can leave as soon as it is there, while the
///   next one is still being computed (the early hand-over of WallFacer, arXiv 2407.00611). The same bytes; up to three
///   messages for each one that carries blocks of its sender.
enum class operand_messages : std::uint8_t { per_block, per_tensor };

[[nodiscard]] constexpr const char* name_of(operand_messages how) noexcept {
  return how == operand_messages::per_block ? "together" : "by_tensor";
}

/// An exchange that carries its blocks with all their tensors.
inline constexpr int every_tensor = -1;

/// A finished program whose exchanges may carry a single tensor of their blocks: `tensor[e]` is the tensor of exchange
/// e, or `every_tensor`; none at all if there is no such exchange.
struct tensor_program {
  orrery::schedule::program program;
  list<int> tensor;

  [[nodiscard]] int tensor_of(int exchange) const { return tensor.empty() ? every_tensor : tensor[exchange]; }
  [[nodiscard]] bool carries(int exchange, int one) const {
    const int only = tensor_of(exchange);
    return only == every_tensor || only == one;
  }
};

/// Splits every message that carries operands at home on its sender into one for each tensor; `sides[t]` says to which
/// side's blocks tensor t belongs. Both ends of a message split it alike, since they see the same blocks. Within a step
/// the exchanges of the first tensor come first. Each tensor has lanes of its own, so that the order of messages in a
/// lane stays what it was proven to be. Slots, tiles and steps do not change.
[[nodiscard]] inline tensor_program split_by_tensor(const program& p, std::span<const side> sides) {
  const auto tensors = static_cast<int>(sides.size());
  tensor_program split{p, {}};
  program& out = split.program;
  out.exchanges = {};
  out.sent = {};
  out.received = {};
  out.completions = {};
  out.collectives = {};

  // Does the part for tensor t of a message carry this block? `own`: all of the message's blocks are its sender's own.
  const auto carries = [&](int t, const block& b, bool own) {
    return own ? t != every_tensor && b.side == sides[static_cast<std::size_t>(t)] : t == every_tensor;
  };
  list<list<int>> parts(p.exchanges.size());  // of each exchange
  for (step& now : out.steps) {
    const range posted = now.exchanges;
    now.exchanges = {out.exchanges.size(), 0};
    for (int t = every_tensor; t < tensors; ++t) {
      for (int e = posted.first; e < posted.end(); ++e) {
        const exchange& x = p.exchanges[e];
        bool sends_own = x.payload == payload::operand;
        bool receives_own = sends_own;
        for (int s = x.sent.first; s < x.sent.end(); ++s) sends_own = sends_own && p.sent[s].shard == p.rank;
        for (int r = x.received.first; r < x.received.end(); ++r)
          receives_own = receives_own && p.received[r].block.shard == x.from;

        exchange part = x;
        part.sent = {out.sent.size(), 0};
        part.received = {out.received.size(), 0};
        for (int s = x.sent.first; s < x.sent.end(); ++s)
          if (carries(t, p.sent[s], sends_own)) out.sent.push_back(p.sent[s]);
        for (int r = x.received.first; r < x.received.end(); ++r)
          if (carries(t, p.received[r].block, receives_own)) out.received.push_back(p.received[r]);
        part.sent.count = out.sent.size() - part.sent.first;
        part.received.count = out.received.size() - part.received.first;
        if (part.sent.count == 0 && part.received.count == 0) continue;
        if (part.sent.count == 0) part.to = no_rank;
        if (part.received.count == 0) part.from = no_rank;
        part.lane = x.lane * (tensors + 1) + t + 1;
        parts[e].push_back(out.exchanges.size());
        out.exchanges.push_back(part);
        split.tensor.push_back(t);
      }
    }
    now.exchanges.count = out.exchanges.size() - now.exchanges.first;
  }

  const auto rename = [&](range& completions) {
    const range before = completions;
    completions.first = out.completions.size();
    for (int c = before.first; c < before.end(); ++c)
      for (const int e : parts[p.completions[c]]) out.completions.push_back(e);
    completions.count = out.completions.size() - completions.first;
  };
  for (step& now : out.steps) rename(now.completions);
  rename(out.final_completions);

  for (const collective& c : p.collectives) {
    for (int t = every_tensor; t < tensors; ++t) {
      collective part = c;
      part.exchanges = {0, 0};
      for (int e = c.exchanges.first; e < c.exchanges.end(); ++e) {
        for (const int n : parts[e]) {
          if (split.tensor[n] != t) continue;
          if (part.exchanges.count++ == 0) part.exchanges.first = n;
        }
      }
      if (part.exchanges.count == c.exchanges.count && part.exchanges.count > 0) out.collectives.push_back(part);
    }
  }
  return split;
}

}  // namespace orrery::schedule

namespace orrery {
using schedule::name_of;
using schedule::operand_messages;
}  // namespace orrery
