// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "orrery/attention/calls.hpp"
#include "orrery/attention/kernel_members.hpp"
#include "orrery/attention/kernel_plan.hpp"
#include "orrery/attention/plan.hpp"
#include "orrery/attention/planned_kernel.hpp"
#include "orrery/attention/planned_mask.hpp"
#include "orrery/attention/relation_of.hpp"
#include "orrery/attention/shape.hpp"
#include "orrery/host/context.hpp"
#include "orrery/layout/detail/check_shards.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/mask/mask_error.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/schedule/relation.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/transport/transport.hpp"
#include "orrery/verify/detail/specialize.hpp"

namespace orrery::detail {

/// The schedules of an operator.
struct attention_schedules {
  operator_schedule forward;
  operator_schedule backward;  ///< unless forward_only

  [[nodiscard]] const operator_schedule& of(pass p) const noexcept { return p == pass::forward ? forward : backward; }
};

/// Empty, or a message. `largest` is the largest number of the type that the kernel computes in.
[[nodiscard]] inline std::string validate(const attention_request& request, const any_topology& topology,
                                          double largest) {
  std::string error = request.what_is_wrong_with_sizes();
  if (!error.empty()) return error;
  error = request.what_is_wrong_with_scale(largest);
  if (!error.empty()) return error;
  for (const pass p : request.passes()) {
    if (const char* reason = unsupported_reason(topology, request.world, p))
      return refusal_message(topology, request.world, p, reason);
  }
  return request.what_is_wrong_with_slices();
}

/// The shards of all ranks, in chunks: chunk c of rank r at [r * chunks + c].
struct dealt_shards {
  int chunks = 1;
  list<segments> queries;
  list<segments> keys;

  /// Asks the layout for both, in `chunks` chunks. Empty, or a message.
  [[nodiscard]] std::string deal(const attention_request& request, const layout_source& layout, int into) {
    chunks = into;
    queries = {};
    keys = {};
    for (const bool of_keys : {false, true}) {
      const std::int64_t length = of_keys ? *request.shape.key_length : request.shape.length;
      const std::string wrong = layout.deal(request.world, length, chunks, of_keys ? keys : queries);
      if (!wrong.empty()) return request.wrong_shards(of_keys ? "key_length" : "length", length, wrong);
    }
    return "";
  }
};

/// Sets into how many chunks shards are cut: as the programs, where these are cut, or else as the layout does; but not
/// for kernels on a device, unless it must or the layout asks for it: what smaller blocks cost there is not measured.
/// Empty, or a message.
[[nodiscard]] inline std::string count_chunks(const attention_request& request, const any_topology& topology,
                                              const layout_source& layout, bool on_host, int& chunks) {
  chunks = topology.chunks();
  if (!on_host && chunks == 1 && layout.has_whole_shards() && !layout.asks_for_chunks()) return "";
  for (const bool of_keys : {false, true}) {
    const std::int64_t length = of_keys ? *request.shape.key_length : request.shape.length;
    int own = 1;
    const std::string wrong = layout.count_chunks(request.world, length, own);
    if (!wrong.empty()) return request.wrong_shards(of_keys ? "key_length" : "length", length, wrong);
    if (topology.chunks() == 1 && own > chunks) chunks = own;
  }
  return "";
}

/// Finds the schedules for the visible pairs, and notes their digests. Empty, or a message.
[[nodiscard]] inline std::string find_schedules(attention_request& request, const any_topology& topology,
                                                const schedule::relation& visible, attention_schedules& found) {
  request.visible_pairs = visible.digest();
  for (const pass p : request.passes()) {
    operator_schedule& of_pass = p == pass::forward ? found.forward : found.backward;
    of_pass = operator_schedule{topology, request.world, p, visible};
    if (!of_pass.found().ok()) return request.unproven(p, of_pass.found());
    (p == pass::forward ? request.forward : request.backward) = of_pass.digest();
  }
  return "";
}

/// Deals the shards and finds the schedules. Shards that the layout gives whole stay whole where cutting them would
/// save nothing: where all pairs of chunks are visible, or schedules are too large to be pruned. Empty, or a message.
template <mask Mask>
[[nodiscard]] std::string deal_and_find(attention_request& request, const Mask& mask, const layout_source& layout,
                                        const any_topology& topology, bool on_host, dealt_shards& shards,
                                        attention_schedules& found) {
  int chunks = 1;
  std::string error = count_chunks(request, topology, layout, on_host, chunks);
  if (error.empty()) error = shards.deal(request, layout, chunks);
  if (!error.empty()) return error;
  schedule::relation visible = relation_of(mask, shards.queries, shards.keys, chunks);
  const bool may_stay_whole = chunks > 1 && topology.chunks() == 1 && layout.has_whole_shards();
  if (!may_stay_whole || !visible.is_full()) error = find_schedules(request, topology, visible, found);
  if (!may_stay_whole || !error.empty()) return error;
  const bool too_many = found.forward.outcome() == specialization::too_many ||
                        (!request.shape.forward_only && found.backward.outcome() == specialization::too_many);
  if (!visible.is_full() && !too_many) return "";
  error = shards.deal(request, layout, 1);
  return error.empty() ? find_schedules(request, topology, visible.coarse(), found) : error;
}

/// Asks the kernel, and lets it plan. Empty, or its message.
template <class Kernel, class Memory, class Mask>
[[nodiscard]] std::string kernel_error(kernel_plan<Kernel, Memory>& own, const attention_plan<Mask>& plan,
                                       const program& forward, const std::optional<program>& backward) try {
  if constexpr (device_checked_kernel<Kernel>) Kernel::require(plan.head_dim, plan.value_dim);
  own.expect(plan, forward);
  if (backward) own.expect(plan, *backward);
  own.take_memory();
  return "";
} catch (const std::exception& e) {
  const std::string message = e.what();
  const std::string prefix = "orrery: ";
  return message.compare(0, prefix.size(), prefix) == 0 ? message.substr(prefix.size()) : message;
}

/// What the calls of an operator need, for one transport and mask: checked, proven and agreed on, without memory.
template <class Kernel, class World, class Mask>
struct prepared_attention {
  using memory = typename World::memory;

  attention_shape shape;  ///< completed
  attention_plan<planned_mask<Mask, memory>> plan;
  kernel_plan<Kernel, memory> kernel;
  program forward;
  std::optional<program> backward;  ///< unless forward_only
  attention_schedules schedules;

  [[nodiscard]] plan_description description() const {
    return {shape, plan.own_positions(side::query), plan.own_positions(side::key)};
  }
};

/// Collective: checks the arguments, proves the schedule, lets the kernel plan, and compares all of this between the
/// ranks. Throws as the constructor of `attention` does.
/// Compiled once for each kernel, transport and mask, whatever the topology and the layout.
template <class Kernel, class World, class Mask>
[[nodiscard]] prepared_attention<Kernel, World, Mask> prepare_attention(World& world, const attention_shape& shape,
                                                                        const Mask& mask, const layout_source& layout,
                                                                        const any_topology& topology) {
  using memory = typename World::memory;
  static_assert(!has_planned<Kernel> || planned_kernel<Kernel, memory>,
                "orrery: Kernel::planned<Memory> needs take_memory(), begin() and bytes(); see "
                "orrery::planned_kernel");
  attention_request request{shape.completed(), world.size(),         topology.name(), topology.slices(world.size()),
                            Kernel::name(),    Kernel::max_head_dim, mask.name(),     layout.name()};
  std::string error =
      validate(request, topology, static_cast<double>((std::numeric_limits<typename Kernel::accumulator>::max)()));
  if (error.empty()) error = wrong_mask(mask, request.shape.length, *request.shape.key_length);
  dealt_shards shards;
  attention_schedules schedules;
  constexpr bool on_host = std::is_same_v<typename Kernel::context, host_context>;
  if (error.empty()) error = deal_and_find(request, mask, layout, topology, on_host, shards, schedules);
  if (!error.empty()) require_agreement(world, request.fields(error));  // throws: here, and on the other ranks below
  request.shards = digest_of(shards.queries, digest_of(shards.keys));
  using mask_of_plan = planned_mask<Mask, memory>;
  prepared_attention<Kernel, World, Mask> made{
      request.shape, {request.shape, world.rank(), mask_of_plan(mask), request.slices}, {}, {}, {}, schedules};
  made.plan.deal(shards.chunks, std::move(shards.queries), std::move(shards.keys));
  made.forward = schedules.forward.of_rank(world.rank());
  if (!request.shape.forward_only) made.backward = schedules.backward.of_rank(world.rank());
  if constexpr (planned_kernel<Kernel, memory> || device_checked_kernel<Kernel>) {
    error = kernel_error(made.kernel, made.plan, made.forward, made.backward);
  }
  require_agreement(world, request.fields(error));
  return made;
}

}  // namespace orrery::detail
