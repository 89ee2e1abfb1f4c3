// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "orrery/detail/function_ref.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/slot_state.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/schedule/walk.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::detail {

/// A block of a tile and its addresses. A null address means the rank's own shard, whose address the interaction knows.
struct tile_block {
  orrery::schedule::block block{};
  const std::byte* operand = nullptr;
  std::byte* partial = nullptr;
  bool fresh = false;  ///< nothing has been added to the partial yet: overwrite it
};

/// The sizes of blocks, from an interaction, to which it keeps a pointer. An operand consists of tensors, one after the
/// other: `sides[t]` is the side whose operands have tensor t.
class block_sizes {
 public:
  std::span<const side> sides;

  template <class Interaction>
  explicit block_sizes(const Interaction& work)
      : sides{Interaction::operands},
        tensor_{work, [](const Interaction& of, int t, const block& b) { return of.operand_bytes(t, b); }},
        partial_{work, [](const Interaction& of, const block& b) { return of.partial_bytes(b); }} {}

  [[nodiscard]] std::int64_t bytes(payload c, const block& b) const {
    return c == payload::partial ? partial_(b) : bytes_before(static_cast<int>(sides.size()), b);
  }
  /// The bytes of one tensor of an operand.
  [[nodiscard]] std::int64_t tensor(int t, const block& b) const { return tensor_(t, b); }
  /// The bytes of the tensors of an operand that come before tensor t.
  [[nodiscard]] std::int64_t bytes_before(int t, const block& b) const {
    std::int64_t sum = 0;
    for (int i = 0; i < t; ++i) {
      if (sides[static_cast<std::size_t>(i)] == b.side) sum += tensor(i, b);
    }
    return sum;
  }

 private:
  function_ref<std::int64_t(int tensor, const block&)> tensor_;
  function_ref<std::int64_t(const block&)> partial_;
};

/// One rank's program with an address for every block: what an executor runs, for every interaction and transport.
///
/// Needs `workspace_bytes()` of memory: each of the program's slots, as large as the largest block that it will hold,
/// and a packed copy of each own operand that is sent, each aligned to 64 bytes. `place` assigns the addresses.
class executor_plan {
 public:
  /// An arrived partial, and where to add it; a null `into` means the rank's own result.
  struct arrival {
    orrery::schedule::block block;
    std::byte* into;
    const std::byte* from;
    bool fresh;
  };
  struct completion {
    int exchange = 0;
    list<arrival> merges;
    list<block> results;  ///< the rank's own results that are complete with these merges
  };
  struct planned_step {
    list<completion> completions;
    range exchanges{0, 0};
    list<tile_block> queries;
    list<tile_block> keys;
    list<block> results;  ///< the rank's own results that are complete with this tile
  };
  /// A tensor of one of the rank's own blocks, and the address of its packed copy.
  struct own_operand {
    orrery::schedule::block block;
    std::byte* address;
  };
  /// The messages of the first step that can be sent when a tensor is provided: what to pack, and the exchanges to
  /// post. The step itself no longer posts these exchanges.
  struct first_messages {
    list<own_operand> packed;
    range exchanges{0, 0};
  };

  list<first_messages> tensors;
  list<planned_step> steps;
  list<block> untouched;                ///< the rank's own results to which nothing is added
  std::vector<exchange_pieces> pieces;  ///< for each exchange of the program

  executor_plan(const program& p, const block_sizes& sizes) : tensors(static_cast<int>(sizes.sides.size())) {
    measure(p, sizes);
    for (const auto& of_kind : slot_bytes_) {
      for (const std::int64_t size : of_kind) count(size);
    }
    for (const own_operand& operand : own_operands_) count(sizes.bytes(payload::operand, operand.block));
    // Slots that hold only empty blocks have addresses, too: a null address is the rank's own shard.
    if (workspace_bytes_ == 0 && !p.received.empty()) workspace_bytes_ = aligned(1);
  }

  [[nodiscard]] std::int64_t workspace_bytes() const noexcept { return workspace_bytes_; }

  /// Assigns all addresses: fills `tensors`, `steps` and `pieces`. Call it once, with the arguments of the constructor.
  void place(const program& p, const block_sizes& sizes, std::byte* workspace) {
    for (std::size_t kind = 0; kind < slot_kinds; ++kind) {
      for (const std::int64_t size : slot_bytes_[kind]) {
        slots_[kind].push_back(workspace);
        workspace += aligned(size);
      }
    }
    for (own_operand& operand : own_operands_) {
      operand.address = workspace;
      workspace += aligned(sizes.bytes(payload::operand, operand.block));
      for (int t = 0; t < tensors.size(); ++t) {
        if (sizes.sides[static_cast<std::size_t>(t)] != operand.block.side) continue;
        tensors[t].packed.push_back({operand.block, operand.address + sizes.bytes_before(t, operand.block)});
      }
    }

    pieces.resize(static_cast<std::size_t>(p.exchanges.size()));
    steps = list<planned_step>(p.steps.size() + 1);
    for (int i = 0; i < p.steps.size(); ++i) steps[i].exchanges = p.steps[i].exchanges;
    placement all{*this, p, sizes};
    walk(p, all);
    for (const own_result& result : own_results_) {
      planned_step& step = steps[result.last_step];
      (result.last_completion < 0 ? step.results : step.completions[result.last_completion].results)
          .push_back(result.block);
    }
    find_untouched(p);
    assign_first_step(p, sizes);
  }

 private:
  /// A result of one of the rank's own blocks, and where something is added to it last.
  struct own_result {
    orrery::schedule::block block;
    int last_step;
    int last_completion;  ///< of that step; -1: the tile of the step
  };

  static std::int64_t aligned(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

  /// Adds the bytes of one block. A sum that overflows becomes the largest number, which cannot be allocated.
  void count(std::int64_t bytes) {
    if (__builtin_add_overflow(workspace_bytes_, aligned(bytes), &workspace_bytes_)) workspace_bytes_ = INT64_MAX;
  }

  /// Numbers the rank's own blocks.
  [[nodiscard]] int number_of_own(const block& own) const {
    return 2 * (own.slice * chunks_ + own.chunk) + (own.side == side::key ? 1 : 0);
  }

  void measure(const program& p, const block_sizes& sizes) {
    chunks_ = p.chunks;
    operand_of_own_ = result_of_own_ = list<int>(2 * p.slices * p.chunks, none);
    for (std::size_t kind = 0; kind < slot_kinds; ++kind) slot_bytes_[kind] = list<std::int64_t>(p.slots[kind]);
    const auto needs = [&](const held_block& held, payload c) {
      if (held.slot == no_slot) return;
      std::int64_t& size = slot_bytes_[kind_of(held.block.side, c)][held.slot];
      const std::int64_t needed = sizes.bytes(c, held.block);
      if (needed > size) size = needed;
    };
    for (const exchange& x : p.exchanges) {
      for (const held_block& received : p.received_by(x)) needs(received, x.payload);
      for (const block& sent : p.sent_by(x)) {
        if (x.payload == payload::operand && sent.shard == p.rank && own_operand_of(sent) == nullptr) {
          operand_of_own_[number_of_own(sent)] = own_operands_.size();
          own_operands_.push_back({sent, nullptr});
        }
      }
    }
    for (const held_block& q : p.queries) needs(q, payload::partial);
    for (const held_block& k : p.keys) needs(k, payload::partial);
  }

  /// Assigns the exchanges of the first step to the tensors that they need: they are sent before the whole first step
  /// can begin.
  void assign_first_step(const program& p, const block_sizes& sizes) {
    if (tensors.empty() || p.steps.empty()) return;
    int ready = 0;  // the tensor with which everything posted up to here can be sent
    range& first = steps[0].exchanges;
    for (const int e : first) {
      for (const block& sent : p.sent_by(p.exchanges[e])) {
        for (int t = ready + 1; t < tensors.size(); ++t) {
          if (sizes.sides[static_cast<std::size_t>(t)] == sent.side && p.exchanges[e].carries(t)) ready = t;
        }
      }
      range& posted = tensors[ready].exchanges;
      posted = {posted.count == 0 ? e : posted.first, posted.count + 1};
    }
    first.count = 0;
  }

  own_operand* own_operand_of(const block& b) {
    const int known = operand_of_own_[number_of_own(b)];
    return known == none ? nullptr : &own_operands_[known];
  }

  [[nodiscard]] std::byte* at(slot_kind kind, int slot) const { return slots_[kind][slot]; }

  /// Records an addition to the result of the rank's own shard. Returns true if it is the first.
  bool first_of_own(const block& b, int last_step, int last_completion) {
    int& known = result_of_own_[number_of_own(b)];
    const bool first = known == none;
    if (first) {
      known = own_results_.size();
      own_results_.push_back({b, last_step, last_completion});
    } else {
      own_results_[known] = {b, last_step, last_completion};
    }
    return first;
  }

  /// Lists the rank's own results to which no tile and no arrival adds anything: what a schedule for a mask leaves out.
  void find_untouched(const program& p) {
    for (const side s : {side::query, side::key}) {
      if (!has_partials(p.pass, s)) continue;
      for (int chunk = 0; chunk < p.chunks; ++chunk) {
        for (int slice = 0; slice < p.slices; ++slice) {
          const block own{s, static_cast<std::uint16_t>(chunk), p.rank, slice};
          if (result_of_own_[number_of_own(own)] == none) untouched.push_back(own);
        }
      }
    }
  }

  /// Assigns the addresses of what a step merges, sends, receives and computes.
  struct placement : visitor {
    executor_plan& plan;
    const program& p;
    const block_sizes& sizes;
    slot_state here;

    placement(executor_plan& made, const program& of, const block_sizes& of_blocks)
        : plan{made}, p{of}, sizes{of_blocks}, here{of} {}

    void complete(int i, int e, const exchange& x) {
      list<completion>& completions = plan.steps[i].completions;
      completion& done = *completions.extend(1);
      done.exchange = e;
      if (x.payload == payload::operand) return;
      for (const held_block& arrived : p.received_by(x)) {
        const slot_kind kind = kind_of(arrived.block.side, payload::partial);
        std::byte* const from = plan.at(kind, arrived.slot);
        here.of(kind).forget(arrived.slot);
        if (arrived.block.shard == p.rank) {
          const bool fresh = plan.first_of_own(arrived.block, i, completions.size() - 1);
          done.merges.push_back({arrived.block, nullptr, from, fresh});
        } else if (const int open = here.of(kind).find(arrived.block, i); open != slot_state::none) {
          done.merges.push_back({arrived.block, plan.at(kind, open), from, false});
        } else {
          here.of(kind).fill(arrived.slot, arrived.block, i);
        }
      }
    }

    void post(int i, int e, const exchange& x) {
      exchange_pieces& local = plan.pieces[static_cast<std::size_t>(e)];
      const auto piece_of = [&](std::byte* address, const block& b) -> piece {
        if (x.tensor == every_tensor) return {address, sizes.bytes(x.payload, b)};
        return {address + sizes.bytes_before(x.tensor - 1, b), sizes.tensor(x.tensor - 1, b)};
      };
      for (const block& sent : p.sent_by(x)) {
        const slot_kind kind = kind_of(sent.side, x.payload);
        if (sent.shard == p.rank) {
          local.sent.push_back(piece_of(plan.own_operand_of(sent)->address, sent));
          continue;
        }
        const int slot = here.of(kind).find(sent, i);
        local.sent.push_back(piece_of(plan.at(kind, slot), sent));
        if (x.payload == payload::partial) here.of(kind).forget(slot);
      }
      for (const held_block& arriving : p.received_by(x)) {
        const slot_kind kind = kind_of(arriving.block.side, x.payload);
        local.received.push_back(piece_of(plan.at(kind, arriving.slot), arriving.block));
        if (x.payload == payload::operand) {
          here.of(kind).fill(arriving.slot, arriving.block, x.complete_before);
        } else {
          here.of(kind).reserve(arriving.slot, arriving.block, x.complete_before);
        }
      }
    }

    void compute(int i, const tile& t) {
      for (const held_block& q : p.queries_of(t)) plan.steps[i].queries.push_back(plan.in_tile(p, here, i, q));
      for (const held_block& k : p.keys_of(t)) plan.steps[i].keys.push_back(plan.in_tile(p, here, i, k));
    }
  };

  tile_block in_tile(const program& p, slot_state& here, int i, const held_block& held) {
    tile_block placed;
    placed.block = held.block;
    const bool own_shard = held.block.shard == p.rank;
    if (!own_shard) {
      const slot_kind kind = kind_of(held.block.side, payload::operand);
      placed.operand = at(kind, here.of(kind).find(held.block, i));
    }
    if (!has_partials(p.pass, held.block.side)) return placed;
    if (own_shard) {
      placed.fresh = first_of_own(held.block, i, -1);
      return placed;
    }
    const slot_kind kind = kind_of(held.block.side, payload::partial);
    int slot = here.of(kind).find(held.block, i);
    placed.fresh = slot == slot_state::none;
    if (placed.fresh) here.of(kind).fill(slot = held.slot, held.block, i);
    placed.partial = at(kind, slot);
    return placed;
  }

  static constexpr int none = -1;

  int chunks_ = 1;
  std::int64_t workspace_bytes_ = 0;
  list<std::int64_t> slot_bytes_[slot_kinds];
  list<std::byte*> slots_[slot_kinds];
  list<own_operand> own_operands_;  // with all their tensors
  list<own_result> own_results_;
  list<int> operand_of_own_;  // by number_of_own: its index in own_operands_, or none
  list<int> result_of_own_;   // likewise in own_results_
};

}  // namespace orrery::detail
