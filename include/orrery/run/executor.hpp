// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
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

/// What an executor runs: any work in which two sides interact. It has
///
/// - `bytes(side, cargo, block)`: the size of a block in a slot and on the wire, contiguous;
/// - `prepare(context)`: is called first, for what must be known before operands are packed;
/// - `pack(context, block, to)`: copies an operand of the rank's own shard, to be sent;
/// - `interact(context, queries, keys)`: lets all pairs of the blocks interact, adding to their partials;
/// - `merge(context, block, into, from, fresh)`: adds the partial in `from` to that in `into` (null: the rank's own
///   result; if `fresh`, nothing is there yet);
/// - `finish(context)`: the rank's own results are complete.
///
/// In a call none of them may allocate, and on a device none may wait.
template <class Interaction, class Context>
concept interaction = requires(Interaction& work, const Context& context, const block& b, std::byte* memory,
                               std::span<const tile_block> blocks) {
  { work.bytes(side::query, cargo::operand, b) } -> std::convertible_to<std::int64_t>;
  work.prepare(context);
  work.pack(context, b, memory);
  work.interact(context, blocks, blocks);
  work.merge(context, b, memory, memory, true);
  work.finish(context);
};

/// Runs one rank's program on real data: the same code for every topology, interaction and transport.
///
/// Everything is decided and all memory is taken when it is made: a slot for each of the program's slots, as large as
/// the largest block that it will hold, and a packed copy of each own operand that is sent. In a call, each step awaits
/// what must have arrived, merges partials, posts its exchanges and then computes its tile while they fly; nothing is
/// allocated.
template <class World, class Interaction>
class executor {
 public:
  /// Collective. The program must be proven (see `verify`) and finished.
  executor(World& world, const program& p, Interaction& work)
      : work_{&work}, plan_{p, work}, channel_{world.open(p, plan_.pieces)} {
    static_assert(transport<World>, "orrery: the executor's first argument is not a transport; see orrery::transport");
  }

  void run() {
    const auto context = channel_.context();
    channel_.begin();
    work_->prepare(context);
    for (const own_operand& own : plan_.own_operands) work_->pack(context, own.block, own.address);
    for (const planned_step& now : plan_.steps) {
      for (const completion& done : now.completions) {
        channel_.await(done.exchange);
        for (const arrival& one : done.merges) work_->merge(context, one.block, one.into, one.from, one.fresh);
      }
      for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) channel_.post(e);
      if (!now.queries.empty()) work_->interact(context, now.queries, now.keys);
    }
    work_->finish(context);
  }

  /// Bytes of the slots and packed operands.
  [[nodiscard]] std::int64_t workspace_bytes() const noexcept { return plan_.workspace_bytes; }

 private:
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

  /// The program with an address for every slot.
  struct plan {
    std::vector<planned_step> steps;
    std::vector<own_operand> own_operands;
    std::vector<exchange_pieces> pieces;
    std::int64_t workspace_bytes = 0;

    plan(const program& p, const Interaction& work) {
      take_memory(p, work);
      residency here{p};
      const auto exchanges = static_cast<std::size_t>(p.exchanges.size());
      pieces.resize(exchanges);
      for (int i = 0; i <= p.steps.size(); ++i) {
        const bool last = i == p.steps.size();
        planned_step& now = steps.emplace_back();
        complete(p, here, i, last ? p.final_completions : p.steps[i].completions, now);
        if (last) break;
        now.exchanges = p.steps[i].exchanges;
        for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) post(p, here, i, e, work);
        const tile& t = p.steps[i].tile;
        if (t.empty()) continue;
        for (int q = t.queries.first; q < t.queries.end(); ++q)
          now.queries.push_back(in_tile(p, here, i, p.queries[q]));
        for (int k = t.keys.first; k < t.keys.end(); ++k) now.keys.push_back(in_tile(p, here, i, p.keys[k]));
      }
    }

   private:
    typename World::memory workspace;
    std::vector<std::byte*> slots[4];
    std::vector<std::pair<block, bool>> own_partials;  // of which something has been added to the result

    static std::int64_t aligned(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

    void take_memory(const program& p, const Interaction& work) {
      std::vector<std::int64_t> sizes[4];
      for (std::size_t kind = 0; kind < 4; ++kind) sizes[kind].resize(static_cast<std::size_t>(p.slots[kind]), 0);
      const auto needs = [&](const held_block& held, cargo c) {
        if (held.slot == no_slot) return;
        std::int64_t& size = sizes[residency::kind_of(held.block.side, c)][static_cast<std::size_t>(held.slot)];
        const std::int64_t bytes = work.bytes(held.block.side, c, held.block);
        if (bytes > size) size = bytes;
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

      for (const auto& of_kind : sizes) {
        for (const std::int64_t size : of_kind) workspace_bytes += aligned(size);
      }
      for (const own_operand& one : own_operands)
        workspace_bytes += aligned(work.bytes(one.block.side, cargo::operand, one.block));
      workspace = typename World::memory{workspace_bytes};
      std::byte* next = workspace.data();
      for (std::size_t kind = 0; kind < 4; ++kind) {
        for (const std::int64_t size : sizes[kind]) {
          slots[kind].push_back(next);
          next += aligned(size);
        }
      }
      for (own_operand& one : own_operands) {
        one.address = next;
        next += aligned(work.bytes(one.block.side, cargo::operand, one.block));
      }
    }

    own_operand* own(const block& b) {
      for (own_operand& one : own_operands) {
        if (one.block == b) return &one;
      }
      return nullptr;
    }

    std::byte* at(int kind, int slot) const { return slots[kind][static_cast<std::size_t>(slot)]; }

    /// Is this the first addition to the result of the rank's own shard? From now on it is not.
    bool first_of_own(const block& b) {
      for (auto& [known, added] : own_partials) {
        if (known == b) return !std::exchange(added, true);
      }
      own_partials.emplace_back(b, true);
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

    void post(const program& p, residency& here, int i, int e, const Interaction& work) {
      const exchange& x = p.exchanges[e];
      exchange_pieces& mine = pieces[static_cast<std::size_t>(e)];
      for (int s = x.sent.first; s < x.sent.end(); ++s) {
        const block& what = p.sent[s];
        const int kind = residency::kind_of(what.side, x.cargo);
        const std::int64_t bytes = work.bytes(what.side, x.cargo, what);
        if (what.shard == p.rank) {
          mine.sent.push_back({own(what)->address, bytes});
          continue;
        }
        const int slot = here.find(kind, what, i);
        mine.sent.push_back({at(kind, slot), bytes});
        if (x.cargo == cargo::partial) here.forget(kind, slot);
      }
      for (int r = x.received.first; r < x.received.end(); ++r) {
        const held_block& arriving = p.received[r];
        const int kind = residency::kind_of(arriving.block.side, x.cargo);
        mine.received.push_back({at(kind, arriving.slot), work.bytes(arriving.block.side, x.cargo, arriving.block)});
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
  };

  Interaction* work_;
  plan plan_;
  decltype(std::declval<World&>().open({}, {})) channel_;
};

}  // namespace orrery
