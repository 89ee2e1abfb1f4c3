// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "orrery/attention/prepare.hpp"
#include "orrery/attention/shape.hpp"
#include "orrery/attention/sizes.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/mask/mask_error.hpp"
#include "orrery/predict/detail/attention_times.hpp"
#include "orrery/predict/detail/timed_schedule.hpp"
#include "orrery/predict/detail/visible_pairs.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/simulation_options.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/topology.hpp"

namespace orrery::detail {

/// The schedule of an operator that was never constructed, and its shards.
struct planned_schedule {
  attention_shape shape;  ///< completed
  list<program> programs;
  std::string note;
  dealt_shards shards;
};

/// Plans as an operator with a kernel on a device does. Throws `std::invalid_argument` as its constructor does.
template <mask Mask>
[[nodiscard]] planned_schedule plan_schedule(const any_topology& topology, int world, const attention_shape& shape,
                                             const Mask& mask, const layout_source& layout,
                                             const simulation_options& options) {
  planned_schedule made;
  const auto refuse = [&](const std::string& error) {
    if (!error.empty()) throw std::invalid_argument{"orrery: simulate: " + error};
  };
  attention_shape asked = shape;
  asked.forward_only = options.pass == pass::forward;
  if (!asked.forward_only) asked.circulate = options.pass;
  attention_request request{asked.completed(), world, topology.name(), 1, "any", INT64_MAX, mask.name(), layout.name()};
  if (world >= 1 && topology.unsupported_reason(world) == nullptr) request.slices = topology.slices(world);
  refuse(validate(request, topology, (std::numeric_limits<double>::max)()));
  refuse(wrong_mask(mask, request.shape.length, *request.shape.key_length));
  for (const auto& [name, bytes] :
       {std::pair{"storage_bytes", options.storage_bytes}, {"sum_bytes", options.sum_bytes}}) {
    if (bytes < 1 || bytes > 16) refuse(std::string{name} + " is " + std::to_string(bytes) + ", expected 1 to 16");
  }
  made.shape = request.shape;
  if (options.as_written) {
    refuse(made.shards.deal(request, layout, topology.chunks()));
    made.programs = programs_of(topology, world, options.pass);
    made.note = "for all pairs of shards, as the topology writes it";
  } else {
    attention_schedules found;
    refuse(deal_and_find(request, mask, layout, topology, false, made.shards, found));
    made.programs = found.of(options.pass).of_all();
    made.note = found.of(options.pass).note();
  }
  return made;
}

/// The schedule of an operator's call, timed. Throws `std::invalid_argument` as `simulate` does.
template <mask Mask>
[[nodiscard]] timed_schedule time_attention(const any_topology& topology, int world, const machine& m,
                                            const attention_shape& shape, const Mask& mask, const layout_source& layout,
                                            const simulation_options& options) {
  m.check();
  m.check_world(world);
  planned_schedule plan = plan_schedule(topology, world, shape, mask, layout, options);
  timed_schedule made;
  made.programs = static_cast<list<program>&&>(plan.programs);
  made.note = topology.name() + ", " + plan.note;
  const attention_sizes sizes{plan.shape,
                              options.pass,
                              made.programs[0].slices,
                              made.programs[0].chunks,
                              static_cast<std::size_t>(options.storage_bytes),
                              static_cast<std::size_t>(options.sum_bytes),
                              plan.shards.queries,
                              plan.shards.keys};
  const bool every_pair = mask.classify(0, plan.shape.length - 1, 0, *plan.shape.key_length - 1) == visibility::all;
  attention_times of{
      plan.shape,
      m,
      sizes,
      plan.shards.queries,
      plan.shards.keys,
      [&](const segment& queries, const segment& keys) { return count_visible_pairs(mask, queries, keys); },
      every_pair,
      options.tile_seconds};
  of.find(made.programs, options.storage_bytes, options.sum_bytes, made.times, made.bytes);
  for (const program& p : made.programs) {
    made.memory.push_back(of.memory_of(p, options.storage_bytes, options.sum_bytes));
  }
  return made;
}

}  // namespace orrery::detail
