// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "orrery/schedule/residency.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery {

/// One block of a tile, and where it lies. A null address is the rank's own shard: the interaction knows where that is.
struct tile_block {
  orrery::block block{};
  const std::byte* operand = nullptr;
  std::byte* partial = nullptr;
  bool fresh = false;  ///< nothing has been added to the partial yet: write it, do not read it
};

/// One rank's program with an address for every block: what an executor runs, whatever interacts and over whichever
/// transport.
///
/// Needs `workspace_bytes()` of memory: a slot for each of the program's slots, as large as the largest block that it
/// will hold, and a packed copy of each own operand that is sent; each aligned to 64 bytes. Has no addresses until it
/// was given that memory by `place`.
class executor_plan {
 public:
  /// A partial that has arrived and where to add it; a null `into` is the rank's own result.
  struct arrival {
    orrery::block block;
    std::byte* into;
    const std::byte* from;
    bool fresh;
  };
  struct completion {
    int exchange = 0;
    std::vector<arrival> merges;
  };
  struct planned_step {
    std::vector<completion> completions;
    range exchanges{0, 0};
    std::vector<tile_block> queries;
    std::vector<tile_block> keys;
  };
  struct own_operand {
    orrery::block block;
    std::byte* address;
  };
  /// The bytes of a block in a slot and on the wire.
  using block_bytes = std::function<std::int64_t(side, cargo, const block&)>;

  std::vector<planned_step> steps;
  std::vector<own_operand> own_operands;
  std::vector<exchange_pieces> pieces;  ///< for each exchange of the program

  executor_plan(const program& p, const block_bytes& bytes) {
    measure(p, bytes);
    for (const auto& of_kind : slot_bytes_) {
      for (const std::int64_t size : of_kind) workspace_bytes_ += aligned(size);
    }
    for (const own_operand& one : own_operands)
      workspace_bytes_ += aligned(bytes(one.block.side, cargo::operand, one.block));
  }

  [[nodiscard]] std::int64_t workspace_bytes() const noexcept { return workspace_bytes_; }

  /// Fills `steps`, `pieces` and the addresses of `own_operands`. To be called once, with the constructor's arguments.
  void place(const program& p, const block_bytes& bytes, std::byte* workspace) {
    for (std::size_t kind = 0; kind < 4; ++kind) {
      for (const std::int64_t size : slot_bytes_[kind]) {
        slots_[kind].push_back(workspace);
        workspace += aligned(size);
      }
    }
    for (own_operand& one : own_operands) {
      one.address = workspace;
      workspace += aligned(bytes(one.block.side, cargo::operand, one.block));
    }

    residency here{p};
    pieces.resize(static_cast<std::size_t>(p.exchanges.size()));
    for (int i = 0; i <= p.steps.size(); ++i) {
      const bool last = i == p.steps.size();
      planned_step& now = steps.emplace_back();
      complete(p, here, i, last ? p.final_completions : p.steps[i].completions, now);
      if (last) break;
      now.exchanges = p.steps[i].exchanges;
      for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) post(p, here, i, e, bytes);
      const tile& t = p.steps[i].tile;
      if (t.empty()) continue;
      for (int q = t.queries.first; q < t.queries.end(); ++q) now.queries.push_back(in_tile(p, here, i, p.queries[q]));
      for (int k = t.keys.first; k < t.keys.end(); ++k) now.keys.push_back(in_tile(p, here, i, p.keys[k]));
    }
  }

 private:
  static std::int64_t aligned(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

  void measure(const program& p, const block_bytes& bytes) {
    for (std::size_t kind = 0; kind < 4; ++kind) slot_bytes_[kind].resize(static_cast<std::size_t>(p.slots[kind]), 0);
    const auto needs = [&](const held_block& held, cargo c) {
      if (held.slot == no_slot) return;
      std::int64_t& size = slot_bytes_[residency::kind_of(held.block.side, c)][static_cast<std::size_t>(held.slot)];
      const std::int64_t needed = bytes(held.block.side, c, held.block);
      if (needed > size) size = needed;
    };
    for (const exchange& x : p.exchanges) {
      for (int r = x.received.first; r < x.received.end(); ++r) needs(p.received[r], x.cargo);
      for (int s = x.sent.first; s < x.sent.end(); ++s) {
        if (x.cargo == cargo::operand && p.sent[s].shard == p.rank && own(p.sent[s]) == nullptr) {
          own_operands.push_back({p.sent[s], nullptr});
        }
      }
    }
    for (const held_block& q : p.queries) needs(q, cargo::partial);
    for (const held_block& k : p.keys) needs(k, cargo::partial);
  }

  own_operand* own(const block& b) {
    for (own_operand& one : own_operands) {
      if (one.block == b) return &one;
    }
    return nullptr;
  }

  [[nodiscard]] std::byte* at(int kind, int slot) const { return slots_[kind][static_cast<std::size_t>(slot)]; }

  /// Is this the first addition to the result of the rank's own shard? From now on it is not.
  bool first_of_own(const block& b) {
    for (auto& [known, added] : own_partials_) {
      if (known == b) return !std::exchange(added, true);
    }
    own_partials_.emplace_back(b, true);
    return true;
  }

  void complete(const program& p, residency& here, int i, const range& completions, planned_step& now) {
    for (int c = completions.first; c < completions.end(); ++c) {
      completion& done = now.completions.emplace_back();
      done.exchange = p.completions[c];
      const exchange& x = p.exchanges[done.exchange];
      if (x.cargo == cargo::operand) continue;
      for (int r = x.received.first; r < x.received.end(); ++r) {
        const held_block& arrived = p.received[r];
        const int kind = residency::kind_of(arrived.block.side, cargo::partial);
        std::byte* const from = at(kind, arrived.slot);
        here.forget(kind, arrived.slot);
        if (arrived.block.shard == p.rank) {
          done.merges.push_back({arrived.block, nullptr, from, first_of_own(arrived.block)});
        } else if (const int open = here.find(kind, arrived.block, i); open != residency::none) {
          done.merges.push_back({arrived.block, at(kind, open), from, false});
        } else {
          here.fill(kind, arrived.slot, arrived.block, i);
        }
      }
    }
  }

  void post(const program& p, residency& here, int i, int e, const block_bytes& bytes) {
    const exchange& x = p.exchanges[e];
    exchange_pieces& mine = pieces[static_cast<std::size_t>(e)];
    for (int s = x.sent.first; s < x.sent.end(); ++s) {
      const block& what = p.sent[s];
      const int kind = residency::kind_of(what.side, x.cargo);
      const std::int64_t size = bytes(what.side, x.cargo, what);
      if (what.shard == p.rank) {
        mine.sent.push_back({own(what)->address, size});
        continue;
      }
      const int slot = here.find(kind, what, i);
      mine.sent.push_back({at(kind, slot), size});
      if (x.cargo == cargo::partial) here.forget(kind, slot);
    }
    for (int r = x.received.first; r < x.received.end(); ++r) {
      const held_block& arriving = p.received[r];
      const int kind = residency::kind_of(arriving.block.side, x.cargo);
      mine.received.push_back({at(kind, arriving.slot), bytes(arriving.block.side, x.cargo, arriving.block)});
      if (x.cargo == cargo::operand) {
        here.fill(kind, arriving.slot, arriving.block, x.complete_before);
      } else {
        here.reserve(kind, arriving.slot, arriving.block, x.complete_before);
      }
    }
  }

  tile_block in_tile(const program& p, residency& here, int i, const held_block& held) {
    tile_block placed;
    placed.block = held.block;
    const bool own_shard = held.block.shard == p.rank;
    if (!own_shard) {
      const int kind = residency::kind_of(held.block.side, cargo::operand);
      placed.operand = at(kind, here.find(kind, held.block, i));
    }
    if (!has_partials(p.pass, held.block.side)) return placed;
    if (own_shard) {
      placed.fresh = first_of_own(held.block);
      return placed;
    }
    const int kind = residency::kind_of(held.block.side, cargo::partial);
    int slot = here.find(kind, held.block, i);
    placed.fresh = slot == residency::none;
    if (placed.fresh) here.fill(kind, slot = held.slot, held.block, i);
    placed.partial = at(kind, slot);
    return placed;
  }

  std::int64_t workspace_bytes_ = 0;
  std::vector<std::int64_t> slot_bytes_[4];  // by kind of residency
  std::vector<std::byte*> slots_[4];
  std::vector<std::pair<block, bool>> own_partials_;  // of which something has been added to the result
};

}  // namespace orrery
