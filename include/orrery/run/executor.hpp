// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "orrery/run/executor_plan.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery {

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
      : work_{&work},
        plan_{p, bytes_of(work)},
        workspace_{plan_.workspace_bytes()},
        channel_{world.open(p, placed(p))} {
    static_assert(transport<World>, "orrery: the executor's first argument is not a transport; see orrery::transport");
  }

  /// If the interaction throws, the other ranks fail at once, with this rank's name, the step and what it has thrown.
  void run() try {
    const auto context = channel_.context();
    now_ = plan_.steps.data();
    channel_.begin();
    work_->prepare(context);
    for (const executor_plan::own_operand& own : plan_.own_operands) work_->pack(context, own.block, own.address);
    for (const executor_plan::planned_step& now : plan_.steps) {
      now_ = &now;
      for (const executor_plan::completion& done : now.completions) {
        channel_.await(done.exchange);
        for (const executor_plan::arrival& one : done.merges)
          work_->merge(context, one.block, one.into, one.from, one.fresh);
      }
      for (int e = now.exchanges.first; e < now.exchanges.end(); ++e) channel_.post(e);
      if (!now.queries.empty()) work_->interact(context, now.queries, now.keys);
    }
    work_->finish(context);
  } catch (const transport_error&) {
    throw;
  } catch (const std::exception& e) {
    abandon(std::string{": "} + e.what());
    throw;
  } catch (...) {
    abandon("");
    throw;
  }

  /// Bytes of the slots and packed operands.
  [[nodiscard]] std::int64_t workspace_bytes() const noexcept { return plan_.workspace_bytes(); }

 private:
  static executor_plan::block_bytes bytes_of(const Interaction& work) {
    return [&work](side s, cargo c, const block& b) -> std::int64_t { return work.bytes(s, c, b); };
  }

  /// The pieces of the placed plan.
  const std::vector<exchange_pieces>& placed(const program& p) {
    plan_.place(p, bytes_of(*work_), workspace_.data());
    return plan_.pieces;
  }

  void abandon(const std::string& why) {
    if constexpr (abandonable<channel_of<World>>) {
      channel_.abandon("in step " + std::to_string(now_ - plan_.steps.data()) + why);
    }
  }

  Interaction* work_;
  executor_plan plan_;
  const executor_plan::planned_step* now_ = nullptr;
  typename World::memory workspace_;
  channel_of<World> channel_;
};

}  // namespace orrery
