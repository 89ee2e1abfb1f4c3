// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "orrery/host/plan_memory.hpp"
#include "orrery/run/executor_plan.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::detail {

/// An interaction that can make a result that of no pair.
template <class Interaction, class Context>
concept clearing = requires(Interaction& work, const Context& context, const block& own) {
  work.clear(context, own);
};

}  // namespace orrery::detail

namespace orrery {

/// The work that an executor runs: any computation in which two sides (queries and keys) interact. Its members:
///
/// - `operands`: the tensors that operands consist of, each by its side, in the order in which the caller provides
///   them;
/// - `operand_bytes(tensor, block)` and `partial_bytes(block)`: contiguous sizes, in a slot and on the wire (an operand
///   is its tensors one after the other);
/// - `prepare(context)`: called first, before operands are packed;
/// - `pack(context, tensor, block, to)`: copies a tensor of the rank's own shard to `to`, from where it is sent;
/// - `interact(context, queries, keys)`: computes the interaction of all pairs of the blocks, and adds it to their
///   partials;
/// - `merge(context, block, into, from, fresh)`: adds the partial at `from` to that at `into`, which is null for the
///   rank's own result; if `fresh`, nothing has been written there yet;
/// - `finish(context, block)`: called when the rank's own result for this block is complete;
/// - `clear(context, block)`, of interactions that run schedules for a part of all pairs (see `verify(topology, world,
///   pass, visible)`): makes the rank's own result for this block that of no pair. Called before `finish` of results to
///   which nothing is added.
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

/// Runs one rank's program: the same code for every topology, interaction and transport.
///
/// The constructor makes all decisions and allocates all memory: each of the program's slots, as large as the largest
/// block that it will hold, and a packed copy of each own operand that is sent. In a call, each step awaits what must
/// have arrived, merges partials, posts its exchanges, and computes its tile while they are in flight. Calls do not
/// allocate.
///
/// A call is `run()`. If the operands become available one after the other, a call is `begin()`, `give(tensor)` for
/// each tensor in the order of `Interaction::operands`, and `finish()`. Then `give` starts the messages of the first
/// step that need no later tensor.
///
/// If the interaction throws, the other ranks fail at once, with this rank's name, the step and the exception's
/// message.
template <class World, class Interaction>
class executor {
  using plan_memory = detail::plan_memory<typename World::memory>;

 public:
  /// Collective. The program must be proven (see `verify`), and its slots allocated. Throws `std::invalid_argument` if
  /// it adds nothing to a result of this rank and the interaction has no `clear`.
  executor(World& world, const schedule::program& p, Interaction& work) : executor{world, p, work, nullptr} {}

  /// The same. Takes the slots and packed operands from `memory`, which must outlive the executor.
  executor(World& world, const schedule::program& p, Interaction& work, plan_memory& memory)
      : executor{world, p, work, &memory} {}

  /// Runs a call.
  void run() {
    begin();
    abandon_on_throw([&] {
      int posted = 0;
      for (int tensor = 0; tensor < plan_.tensors.size(); ++tensor) posted += pack_and_post(tensor);
      end_posting(posted);
    });
    finish();
  }

  /// Begins a call whose operands follow by `give`.
  void begin() {
    abandon_on_throw([&] {
      now_ = plan_.steps.items;
      channel_.begin();
      work_->prepare(channel_.context());
    });
  }

  /// Packs a tensor of this rank's operands, and starts the messages that can now be sent.
  void give(int tensor) {
    abandon_on_throw([&] { end_posting(pack_and_post(tensor)); });
  }

  /// Runs all steps and completes the call.
  void finish() {
    abandon_on_throw([&] {
      const auto context = channel_.context();
      if constexpr (can_clear) {
        for (const schedule::block& result : plan_.untouched) {
          work_->clear(context, result);
          work_->finish(context, result);
        }
      }
      for (const detail::executor_plan::planned_step& now : plan_.steps) {
        now_ = &now;
        const auto number = static_cast<int>(now_ - plan_.steps.items);
        const detail::observed_part in_step{channel_, call_part::step, number};
        for (const detail::executor_plan::completion& done : now.completions) {
          channel_.await(done.exchange);
          for (const detail::executor_plan::arrival& merge : done.merges)
            work_->merge(context, merge.block, merge.into, merge.from, merge.fresh);
          for (const schedule::block& result : done.results) work_->finish(context, result);
        }
        end_posting(post(now.exchanges));
        if (!now.queries.empty()) {
          const detail::observed_part in_tile{channel_, call_part::tile, number};
          work_->interact(context, now.queries, now.keys);
        }
        for (const schedule::block& result : now.results) work_->finish(context, result);
      }
    });
    end_observed_call();
  }

  /// Lets messages in flight make progress, on transports that need the processor for it.
  void progress() {
    const auto context = channel_.context();
    if constexpr (requires { context.poll(); }) context.poll();
  }

  /// Abandons the call: the other ranks fail at once, with this rank's name, the step and `why`.
  void abandon(const std::string& why) {
    if constexpr (detail::abandonable<detail::channel_of<World>>) {
      channel_.abandon("in step " + std::to_string(now_ - plan_.steps.items) + why);
    }
  }

  /// The size of the slots and packed operands in bytes.
  [[nodiscard]] std::int64_t workspace_bytes() const noexcept { return plan_.workspace_bytes(); }

 private:
  static constexpr bool can_clear =
      detail::clearing<Interaction, decltype(std::declval<detail::channel_of<World>&>().context())>;

  executor(World& world, const schedule::program& p, Interaction& work, plan_memory* shared)
      : work_{&work},
        plan_{give_up_on_throw(world,
                               [&] {
                                 return detail::executor_plan{p, detail::block_sizes{work}};
                               })},
        workspace_{give_up_on_throw(world,
                                    [&] {
                                      return (shared == nullptr ? own_memory_ : *shared)
                                          .take("the slots and packed operands of a plan", plan_.workspace_bytes());
                                    })},
        channel_{give_up_on_throw(world, [&] { return world.open(p, placed(p)); })} {
    static_assert(transport<World>, "orrery: the executor's first argument is not a transport; see orrery::transport");
  }

  void require_clear() const {
    if (can_clear || plan_.untouched.empty()) return;
    const schedule::block& result = plan_.untouched[0];
    throw std::invalid_argument{std::string{"orrery: executor: the program adds nothing to the rank's own "} +
                                (result.side == schedule::side::query ? "query" : "key") + " shard " +
                                std::to_string(result.shard) +
                                ", whose result must be cleared: give the interaction clear(context, block), or run a "
                                "schedule of every pair"};
  }

  /// Returns make(). If it throws, the other ranks fail at once, with this rank's name.
  template <class Make>
  static auto give_up_on_throw(World& world, const Make& make) {
    try {
      return make();
    } catch (...) {
      give_up_on_exception(world, "while it made an executor");
      throw;
    }
  }

  /// Places the plan in the workspace, and returns its pieces.
  const std::vector<exchange_pieces>& placed(const schedule::program& p) {
    plan_.place(p, detail::block_sizes{*work_}, workspace_);
    require_clear();
    return plan_.pieces;
  }

  /// Packs and posts a tensor. Returns the number of posted exchanges.
  int pack_and_post(int tensor) {
    const auto context = channel_.context();
    const detail::executor_plan::first_messages& ready = plan_.tensors[tensor];
    for (const detail::executor_plan::own_operand& operand : ready.packed)
      work_->pack(context, tensor, operand.block, operand.address);
    return post(ready.exchanges);
  }
  int post(const schedule::range& exchanges) {
    for (const int e : exchanges) channel_.post(e);
    return exchanges.count;
  }
  void end_posting(int posted) {
    if constexpr (detail::batching<detail::channel_of<World>>) {
      if (posted > 0) channel_.posted();
    }
  }

  void end_observed_call() noexcept {
    if constexpr (detail::observing<detail::channel_of<World>>) channel_.ended();
  }

  template <class Part>
  void abandon_on_throw(const Part& part) try {
    part();
  } catch (const transport_error&) {
    end_observed_call();
    throw;
  } catch (const std::exception& e) {
    end_observed_call();
    abandon(std::string{": "} + e.what());
    throw;
  } catch (...) {
    end_observed_call();
    abandon("");
    throw;
  }

  Interaction* work_;
  detail::executor_plan plan_;
  const detail::executor_plan::planned_step* now_ = nullptr;
  plan_memory own_memory_;  // none taken: the workspace is in memory of the caller
  std::byte* workspace_;
  detail::channel_of<World> channel_;
};

}  // namespace orrery
