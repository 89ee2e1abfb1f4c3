// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "orrery/schedule/detail/slot_state.hpp"
#include "orrery/schedule/detail/split_by_tensor.hpp"
#include "orrery/schedule/list.hpp"
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
        work_{&work},
        tensor_{[](const void* erased, int t, const block& b) -> std::int64_t {
          return static_cast<const Interaction*>(erased)->operand_bytes(t, b);
        }},
        partial_{[](const void* erased, const block& b) -> std::int64_t {
          return static_cast<const Interaction*>(erased)->partial_bytes(b);
        }} {}

  [[nodiscard]] std::int64_t bytes(payload c, const block& b) const {
    return c == payload::partial ? partial_(work_, b) : bytes_before(static_cast<int>(sides.size()), b);
  }
  /// The bytes of one tensor of an operand.
  [[nodiscard]] std::int64_t tensor(int t, const block& b) const { return tensor_(work_, t, b); }
  /// The bytes of the tensors of an operand that come before tensor t.
  [[nodiscard]] std::int64_t bytes_before(int t, const block& b) const {
    std::int64_t sum = 0;
    for (int i = 0; i < t; ++i) {
      if (sides[static_cast<std::size_t>(i)] == b.side) sum += tensor(i, b);
    }
    return sum;
  }

 private:
  const void* work_;
  std::int64_t (*tensor_)(const void* work, int, const block&);
  std::int64_t (*partial_)(const void* work, const block&);
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

  executor_plan(const tensor_program& p, const block_sizes& sizes) : tensors(static_cast<int>(sizes.sides.size())) {
    measure(p.program, sizes);
    for (const auto& of_kind : slot_bytes_) {
      for (const std::int64_t size : of_kind) count(size);
    }
    for (const own_operand& operand : own_operands_) count(sizes.bytes(payload::operand, operand.block));
    // Slots that hold only empty blocks have addresses, too: a null address is the rank's own shard.
    if (workspace_bytes_ == 0 && !p.program.received.empty()) workspace_bytes_ = aligned(1);
  }

  [[nodiscard]] std::int64_t workspace_bytes() const noexcept { return workspace_bytes_; }

  /// Assigns all addresses: fills `tensors`, `steps` and `pieces`. Call it once, with the arguments of the constructor.
  void place(const tensor_program& schedule, const block_sizes& sizes, std::byte* workspace) {
    const program& p = schedule.program;
    for (std::size_t kind = 0; kind < 4; ++kind) {
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

    slot_state here{p};
    pieces.resize(static_cast<std::size_t>(p.exchanges.size()));
    steps = list<planned_step>(p.steps.size() + 1);
    for (int i = 0; i <= p.steps.size(); ++i) {
      const bool last = i == p.steps.size();
      planned_step& now = steps[i];
      complete(p, here, i, last ? p.final_completions : p.steps[i].completions, now);
      if (last) break;
      now.exchanges = p.steps[i].exchanges;
      for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) post(schedule, here, i, e, sizes);
      const tile& t = p.steps[i].tile;
      if (t.empty()) continue;
      for (int q = t.queries.first; q < t.queries.end(); ++q) now.queries.push_back(in_tile(p, here, i, p.queries[q]));
      for (int k = t.keys.first; k < t.keys.end(); ++k) now.keys.push_back(in_tile(p, here, i, p.keys[k]));
    }
    for (const own_result& result : own_results_) {
      planned_step& step = steps[result.last_step];
      (result.last_completion < 0 ? step.results : step.completions[result.last_completion].results)
          .push_back(result.block);
    }
    find_untouched(p);
    assign_first_step(schedule, sizes);
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
    for (std::size_t kind = 0; kind < 4; ++kind) slot_bytes_[kind] = list<std::int64_t>(p.slots[kind]);
    const auto needs = [&](const held_block& held, payload c) {
      if (held.slot == no_slot) return;
      std::int64_t& size = slot_bytes_[slot_state::kind_of(held.block.side, c)][held.slot];
      const std::int64_t needed = sizes.bytes(c, held.block);
      if (needed > size) size = needed;
    };
    for (const exchange& x : p.exchanges) {
      for (int r = x.received.first; r < x.received.end(); ++r) needs(p.received[r], x.payload);
      for (int s = x.sent.first; s < x.sent.end(); ++s) {
        if (x.payload == payload::operand && p.sent[s].shard == p.rank && own_operand_of(p.sent[s]) == nullptr) {
          operand_of_own_[number_of_own(p.sent[s])] = own_operands_.size();
          own_operands_.push_back({p.sent[s], nullptr});
        }
      }
    }
    for (const held_block& q : p.queries) needs(q, payload::partial);
    for (const held_block& k : p.keys) needs(k, payload::partial);
  }

  /// Assigns the exchanges of the first step to the tensors that they need: they are sent before the whole first step
  /// can begin.
  void assign_first_step(const tensor_program& schedule, const block_sizes& sizes) {
    const program& p = schedule.program;
    if (tensors.empty() || p.steps.empty()) return;
    int ready = 0;  // the tensor with which everything posted up to here can be sent
    range& first = steps[0].exchanges;
    for (int e = first.first; e < first.end(); ++e) {
      for (int s = p.exchanges[e].sent.first; s < p.exchanges[e].sent.end(); ++s) {
        for (int t = ready + 1; t < tensors.size(); ++t) {
          if (sizes.sides[static_cast<std::size_t>(t)] == p.sent[s].side && schedule.carries(e, t)) ready = t;
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

  [[nodiscard]] std::byte* at(unsigned kind, int slot) const { return slots_[kind][slot]; }

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

  void complete(const program& p, slot_state& here, int i, const range& completions, planned_step& now) {
    for (int c = completions.first; c < completions.end(); ++c) {
      completion& done = *now.completions.extend(1);
      done.exchange = p.completions[c];
      const exchange& x = p.exchanges[done.exchange];
      if (x.payload == payload::operand) continue;
      for (int r = x.received.first; r < x.received.end(); ++r) {
        const held_block& arrived = p.received[r];
        const unsigned kind = slot_state::kind_of(arrived.block.side, payload::partial);
        std::byte* const from = at(kind, arrived.slot);
        here.kinds[kind].forget(arrived.slot);
        if (arrived.block.shard == p.rank) {
          const bool fresh = first_of_own(arrived.block, i, c - completions.first);
          done.merges.push_back({arrived.block, nullptr, from, fresh});
        } else if (const int open = here.kinds[kind].find(arrived.block, i); open != slot_state::none) {
          done.merges.push_back({arrived.block, at(kind, open), from, false});
        } else {
          here.kinds[kind].fill(arrived.slot, arrived.block, i);
        }
      }
    }
  }

  void post(const tensor_program& schedule, slot_state& here, int i, int e, const block_sizes& sizes) {
    const program& p = schedule.program;
    const exchange& x = p.exchanges[e];
    exchange_pieces& local = pieces[static_cast<std::size_t>(e)];
    const int only = schedule.tensor_of(e);
    const auto piece_of = [&](std::byte* address, const block& b) -> piece {
      if (only == every_tensor) return {address, sizes.bytes(x.payload, b)};
      return {address + sizes.bytes_before(only, b), sizes.tensor(only, b)};
    };
    for (int s = x.sent.first; s < x.sent.end(); ++s) {
      const block& sent = p.sent[s];
      const unsigned kind = slot_state::kind_of(sent.side, x.payload);
      if (sent.shard == p.rank) {
        local.sent.push_back(piece_of(own_operand_of(sent)->address, sent));
        continue;
      }
      const int slot = here.kinds[kind].find(sent, i);
      local.sent.push_back(piece_of(at(kind, slot), sent));
      if (x.payload == payload::partial) here.kinds[kind].forget(slot);
    }
    for (int r = x.received.first; r < x.received.end(); ++r) {
      const held_block& arriving = p.received[r];
      const unsigned kind = slot_state::kind_of(arriving.block.side, x.payload);
      local.received.push_back(piece_of(at(kind, arriving.slot), arriving.block));
      if (x.payload == payload::operand) {
        here.kinds[kind].fill(arriving.slot, arriving.block, x.complete_before);
      } else {
        here.kinds[kind].reserve(arriving.slot, arriving.block, x.complete_before);
      }
    }
  }

  tile_block in_tile(const program& p, slot_state& here, int i, const held_block& held) {
    tile_block placed;
    placed.block = held.block;
    const bool own_shard = held.block.shard == p.rank;
    if (!own_shard) {
      const unsigned kind = slot_state::kind_of(held.block.side, payload::operand);
      placed.operand = at(kind, here.kinds[kind].find(held.block, i));
    }
    if (!has_partials(p.pass, held.block.side)) return placed;
    if (own_shard) {
      placed.fresh = first_of_own(held.block, i, -1);
      return placed;
    }
    const unsigned kind = slot_state::kind_of(held.block.side, payload::partial);
    int slot = here.kinds[kind].find(held.block, i);
    placed.fresh = slot == slot_state::none;
    if (placed.fresh) here.kinds[kind].fill(slot = held.slot, held.block, i);
    placed.partial = at(kind, slot);
    return placed;
  }

  static constexpr int none = -1;

  int chunks_ = 1;
  std::int64_t workspace_bytes_ = 0;
  list<std::int64_t> slot_bytes_[4];  // by kind of slot
  list<std::byte*> slots_[4];
  list<own_operand> own_operands_;  // with all their tensors
  list<own_result> own_results_;
  list<int> operand_of_own_;  // by number_of_own: its index in own_operands_, or none
  list<int> result_of_own_;   // likewise in own_results_
};

}  // namespace orrery::detail
