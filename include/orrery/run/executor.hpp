// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <vector>

#include "orrery/host/memory.hpp"
#include "orrery/run/executor_plan.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery {

/// What an executor runs: any work in which two sides interact. It has
///
/// - `operands`: the tensors that operands consist of, each by its side, in the order in which they are handed over;
/// - `operand_bytes(tensor, block)` and `partial_bytes(block)`: sizes, contiguous, in a slot and on the wire (an
///   operand is its tensors, one after the other);
/// - `prepare(context)`: is called first, for what must be known before operands are packed;
/// - `pack(context, tensor, block, to)`: copies a tensor of the rank's own shard, to be sent;
/// - `interact(context, queries, keys)`: lets all pairs of the blocks interact, adding to their partials;
/// - `merge(context, block, into, from, fresh)`: adds the partial in `from` to that in `into` (null: the rank's own
///   result; if `fresh`, nothing is there yet);
/// - `finish(context, block)`: the rank's own result for this block is complete.
///
/// In a call none of them may allocate, and on a device none may wait.
template <class Interaction, class Context>
concept interaction = requires(Interaction& work, const Context& context, int tensor, const schedule::block& b,
                               std::byte* memory, std::span<const detail::tile_block> blocks) {
  std::span<const schedule::side>{Interaction::operands};
  { work.operand_bytes(tensor, b) } -> std::convertible_to<std::int64_t>;
  { work.partial_bytes(b) } -> std::convertible_to<std::int64_t>;
  work.prepare(context);
  work.pack(context, tensor, b, memory);
  work.interact(context, blocks, blocks);
  work.merge(context, b, memory, memory, true);
  work.finish(context, b);
};

/// Runs one rank's program on real data: the same code for every topology, interaction and transport.
///
/// Everything is decided and all memory is taken when it is made: a slot for each of the program's slots, as large as
/// the largest block that it will hold, and a packed copy of each own operand that is sent. In a call, each step awaits
/// what must have arrived, merges partials, posts its exchanges and then computes its tile while they fly; nothing is
/// allocated.
///
/// A call is `run()`; or, if the operands come one after the other, `begin()`, `give(tensor)` for each of them in the
/// order of `Interaction::operands`, and `finish()`. What the first step sends leaves as soon as it is given.
///
/// If the interaction throws, the other ranks fail at once, with this rank's name, the step and what it has thrown.
template <class World, class Interaction>
class executor {
 public:
  /// Collective. The program must be proven (see `verify`) and finished.
  executor(World& world, const schedule::tensor_program& p, Interaction& work)
      : work_{&work},
        plan_{or_give_up(world,
                         [&] {
                           return detail::executor_plan{p, detail::block_sizes{work}};
                         })},
        workspace_{or_give_up(world,
                              [&] {
                                return detail::memory_for<typename World::memory>(
                                    "the slots and packed operands of a plan", plan_.workspace_bytes());
                              })},
        channel_{or_give_up(world, [&] { return world.open(p.program, placed(p)); })} {
    static_assert(transport<World>, "orrery: the executor's first argument is not a transport; see orrery::transport");
  }
  executor(World& world, const schedule::program& p, Interaction& work)
      : executor{world, schedule::tensor_program{p, {}}, work} {}

  void run() {
    begin();
    or_abandon([&] {
      int posted = 0;
      for (int tensor = 0; tensor < plan_.tensors.size(); ++tensor) posted += pack_and_post(tensor);
      end_posting(posted);
    });
    finish();
  }

  void begin() {
    or_abandon([&] {
      now_ = plan_.steps.items;
      channel_.begin();
      work_->prepare(channel_.context());
    });
  }

  void give(int tensor) {
    or_abandon([&] { end_posting(pack_and_post(tensor)); });
  }

  void finish() {
    or_abandon([&] {
      const auto context = channel_.context();
      for (const detail::executor_plan::planned_step& now : plan_.steps) {
        now_ = &now;
        for (const detail::executor_plan::completion& done : now.completions) {
          channel_.await(done.exchange);
          for (const detail::executor_plan::arrival& merge : done.merges)
            work_->merge(context, merge.block, merge.into, merge.from, merge.fresh);
          for (const schedule::block& result : done.results) work_->finish(context, result);
        }
        end_posting(post(now.exchanges));
        if (!now.queries.empty()) work_->interact(context, now.queries, now.keys);
        for (const schedule::block& result : now.results) work_->finish(context, result);
      }
    });
  }

  /// Lets what flies move on, where the transport needs the processor for it.
  void progress() {
    const auto context = channel_.context();
    if constexpr (requires { context.poll(); }) context.poll();
  }

  /// This rank leaves the call in the middle: the others fail at once, with this rank's name, the step and `why`.
  void abandon(const std::string& why) {
    if constexpr (detail::abandonable<detail::channel_of<World>>) {
      channel_.abandon("in step " + std::to_string(now_ - plan_.steps.items) + why);
    }
  }

  /// Bytes of the slots and packed operands.
  [[nodiscard]] std::int64_t workspace_bytes() const noexcept { return plan_.workspace_bytes(); }

 private:
  /// make(); if it throws, the other ranks fail at once, with this rank's name.
  template <class Make>
  static auto or_give_up(World& world, const Make& make) {
    try {
      return make();
    } catch (...) {
      give_up_on_exception(world, "while it made an executor");
      throw;
    }
  }

  /// The pieces of the placed plan.
  const std::vector<exchange_pieces>& placed(const schedule::tensor_program& p) {
    plan_.place(p, detail::block_sizes{*work_}, workspace_.data());
    return plan_.pieces;
  }

  /// Each returns how many exchanges it has posted.
  int pack_and_post(int tensor) {
    const auto context = channel_.context();
    const detail::executor_plan::handed_over& given = plan_.tensors[tensor];
    for (const detail::executor_plan::own_operand& own : given.packed)
      work_->pack(context, tensor, own.block, own.address);
    return post(given.exchanges);
  }
  int post(const schedule::range& exchanges) {
    for (int e = exchanges.first; e < exchanges.end(); ++e) channel_.post(e);
    return exchanges.count;
  }
  void end_posting(int posted) {
    if constexpr (detail::batching<detail::channel_of<World>>) {
      if (posted > 0) channel_.posted();
    }
  }

  template <class Part>
  void or_abandon(const Part& part) try {
    part();
  } catch (const transport_error&) {
    throw;
  } catch (const std::exception& e) {
    abandon(std::string{": "} + e.what());
    throw;
  } catch (...) {
    abandon("");
    throw;
  }

  Interaction* work_;
  detail::executor_plan plan_;
  const detail::executor_plan::planned_step* now_ = nullptr;
  typename World::memory workspace_;
  detail::channel_of<World> channel_;
};

}  // namespace orrery
