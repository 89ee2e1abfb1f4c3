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
#include "orrery/attention/relation_of.hpp"
#include "orrery/attention/shape.hpp"
#include "orrery/attention/sizes.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/segment.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/mask/mask_error.hpp"
#include "orrery/predict/detail/attention_times.hpp"
#include "orrery/predict/detail/rank_orbits.hpp"
#include "orrery/predict/detail/timed_schedule.hpp"
#include "orrery/predict/detail/visible_pairs.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/simulation_options.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/schedule/detail/counted.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/topology.hpp"

namespace orrery::detail {

/// The schedule of an operator that was never constructed, and its shards.
struct planned_schedule {
  attention_shape shape;  ///< completed
  rank_orbits orbits;
  list<program> programs;  ///< of the orbits' representatives
  std::string note;
  dealt_shards shards;
};

/// True if the mask hides nothing.
template <mask Mask>
[[nodiscard]] bool sees_all(const Mask& mask, const attention_shape& completed) {
  return mask.classify(0, completed.length - 1, 0, *completed.key_length - 1) == visibility::all;
}

/// True if all shards have equally many tokens, and all slices equally many heads: then all ranks send as much.
[[nodiscard]] inline bool has_equal_blocks(const planned_schedule& plan) {
  for (const list<segments>* const shards : {&plan.shards.queries, &plan.shards.keys}) {
    for (const segments& one : *shards) {
      if (one.tokens() != (*shards)[0].tokens()) return false;
    }
  }
  const list<head_slice> slices =
      head_slice::all(plan.programs[0].slices, plan.shape.query_heads, *plan.shape.key_heads);
  for (const head_slice& one : slices) {
    if (one.query_heads != slices[0].query_heads || one.key_heads != slices[0].key_heads) return false;
  }
  return true;
}

/// True if each tile holds all shards: whatever a mask hides, it hides it on every rank.
[[nodiscard]] inline bool has_whole_tiles(const list<program>& programs) {
  for (const program& p : programs) {
    for (const step& s : p.steps) {
      if (!s.tile.empty() && (s.tile.queries.count < p.world || s.tile.keys.count < p.world)) return false;
    }
  }
  return true;
}

/// Writes the programs of one rank of each orbit, if the topology has a symmetric grid and the ranks of an orbit do the
/// same: false if not. Nothing is proven of the schedule. Throws `std::invalid_argument` for a wrong layout.
template <mask Mask>
[[nodiscard]] bool fold(planned_schedule& made, const attention_request& request, const any_topology& topology,
                        const machine& m, const Mask& mask, const layout_source& layout,
                        const simulation_options& options) {
  constexpr int most_pairs_asked = 4096;  // squared
  const int world = request.world;
  if (topology.chunks() != 1 || !layout.has_whole_shards() || layout.asks_for_chunks()) return false;
  for (int rank = 1; rank < world; ++rank) {
    if (m.speed_of(rank) != m.speed_of(0)) return false;
  }
  made.orbits = rank_orbits{world, topology.symmetric_grid(world), m};
  if (!made.orbits.is_folded()) return false;
  const bool every_pair = sees_all(mask, made.shape);
  if (!every_pair && world > most_pairs_asked) return false;
  const std::string error = made.shards.deal(request, layout, 1);
  if (!error.empty()) throw std::invalid_argument{"orrery: simulate: " + error};
  made.programs = {};
  for (int orbit = 0; orbit < made.orbits.count(); ++orbit) {
    made.programs.push_back(program_of(topology, made.orbits.representative(orbit), world, options.pass));
    if (!every_pair && !has_whole_tiles(made.programs)) return false;
  }
  made.note = "for all pairs of shards, as the topology writes it";
  return has_equal_blocks(made) &&
         (every_pair || options.as_written || relation_of(mask, made.shards.queries, made.shards.keys, 1).is_full());
}

/// The most blocks that the programs of all ranks may name, to be simulated rank by rank: some 10 GB.
inline constexpr std::int64_t most_simulated_blocks = std::int64_t{1} << 26;

/// Throws `std::invalid_argument` if all ranks' programs are too large to simulate, judging by one.
inline void expect_simulable(const any_topology& topology, const program& one) {
  const std::int64_t names = (block_names(one) + one.steps.size()) * one.world;
  if (names <= most_simulated_blocks) return;
  throw std::invalid_argument{
      "orrery: simulate: " + topology.name() + " over " + counted_ranks(one.world) + " names about " +
      std::to_string(names) + " blocks, more than the " + std::to_string(most_simulated_blocks) +
      " that can be simulated rank by rank; larger worlds need a topology with a symmetric_grid, a mask that hides "
      "nothing, shards and slices of equal size, ranks of equal speed, and no timeline"};
}

/// Plans as an operator with a kernel on a device does. Throws `std::invalid_argument` as its constructor does.
template <mask Mask>
[[nodiscard]] planned_schedule plan_schedule(const any_topology& topology, int world, const machine& m,
                                             const attention_shape& shape, const Mask& mask,
                                             const layout_source& layout, const simulation_options& options,
                                             bool may_fold) {
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
  if (may_fold && fold(made, request, topology, m, mask, layout, options)) return made;
  made.orbits = rank_orbits{world};
  made.programs = {};
  if (writes_each_rank_alone(topology, options.pass)) {
    expect_simulable(topology, unallocated_program(topology, 0, world, options.pass));
  }
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

/// The schedule of an operator's call, timed. Throws `std::invalid_argument` as `simulate` does. With `may_fold`, of
/// one rank of each orbit, where those of an orbit take the same times.
template <mask Mask>
[[nodiscard]] timed_schedule time_attention(const any_topology& topology, int world, const machine& m,
                                            const attention_shape& shape, const Mask& mask, const layout_source& layout,
                                            const simulation_options& options, bool may_fold = false) {
  m.check();
  m.check_world(world);
  planned_schedule plan = plan_schedule(topology, world, m, shape, mask, layout, options, may_fold);
  timed_schedule made;
  made.orbits = plan.orbits;
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
  const bool every_pair = sees_all(mask, plan.shape);
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
