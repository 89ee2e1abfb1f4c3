// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "orrery/attention/construct.hpp"
#include "orrery/attention/shape.hpp"
#include "orrery/attention/sizes.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/mask/mask_error.hpp"
#include "orrery/predict/detail/attention_times.hpp"
#include "orrery/predict/detail/program_simulation.hpp"
#include "orrery/predict/detail/visible_pairs.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/prediction.hpp"
#include "orrery/predict/tile_work.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/any_topology.hpp"

namespace orrery {

/// What else `simulate` is told.
struct simulation_options {
  schedule::pass pass = schedule::pass::forward;
  std::int64_t storage_bytes = 2;  ///< of an element of Q, K, V and O: 2 for bfloat16 and float16
  std::int64_t sum_bytes = 4;      ///< of an element of a partial: 4 for float
  /// Simulates the schedule that the topology writes, for every pair, and not what an operator makes of it for the mask
  /// and the layout. As most systems do: they move what the mask hides, and skip computing it.
  bool as_written = false;
  bool with_timeline = false;  ///< fills `prediction::timeline`
  /// Seconds of a tile on a rank of speed 1; if empty, `tile_seconds(work, machine's rates)`. For a table of measured
  /// times, or another model of a kernel.
  std::function<double(const tile_work&)> tile_seconds{};
};

/// Predicts when everything happens in one call of finished programs on a machine. `bytes` is the size of a block, a
/// function of (side, payload, block), and `tile_seconds(program, tile)` the seconds that a tile takes on a rank of
/// speed 1. For interactions of one's own; there is another `simulate` for attention.
///
///     const auto bytes = [](schedule::side, schedule::payload, const schedule::block&) { return std::int64_t{1} << 24;
///     }; const auto seconds = [](const program&, const schedule::tile&) { return 1e-3; }; simulate(programs_of(ring{},
///     4), machine_named("h100"), bytes, seconds).seconds;
///
/// Each rank does its steps in order: it awaits what must have completed, posts its exchanges, and computes while they
/// are under way. A message takes latency + bytes / bandwidth of the innermost level that both ranks share, from when
/// both ends have posted it; messages share ports max-min fairly. Merging is not counted.
///
/// Costs about a microsecond for each message and each step, and more where many messages that begin and end at
/// different times share ports. Throws `std::invalid_argument` if the machine cannot be, is smaller than the world, or
/// has nodes that the ranks do not fill, and if the programs are wrong as far as it matters: messages that do not
/// match, or wait for each other for ever.
template <block_cost Cost, class TileSeconds>
  requires requires(const TileSeconds& seconds, const schedule::program& p) {
    { seconds(p, schedule::tile{}) } -> std::convertible_to<double>;
  }
[[nodiscard]] prediction simulate(const schedule::list<schedule::program>& programs, const machine& m,
                                  const Cost& bytes, const TileSeconds& tile_seconds, bool with_timeline = false) {
  m.check();
  m.check_world(programs.size());
  std::vector<detail::step_times> times;
  std::vector<std::vector<std::int64_t>> sent;
  for (const schedule::program& p : programs) {
    const auto steps = static_cast<std::size_t>(p.steps.size());
    const double speed = m.speed_of(p.rank);
    detail::step_times t{m.device.call / speed, std::vector<double>(steps + 1), std::vector<double>(steps),
                         std::vector<double>(steps), std::vector<double>(steps)};
    for (int i = 0; i < p.steps.size(); ++i) {
      const schedule::step& now = p.steps[i];
      const auto at = static_cast<std::size_t>(i);
      t.host[at] = (m.device.step + m.device.message * now.exchanges.count) / speed;
      if (!now.tile.empty()) t.tiles[at] = tile_seconds(p, now.tile) / speed;
    }
    times.push_back(std::move(t));
    std::vector<std::int64_t> of_rank;
    for (const schedule::exchange& x : p.exchanges) {
      std::int64_t sum = 0;
      for (const schedule::block& b : p.sent_by(x)) sum += static_cast<std::int64_t>(bytes(b.side, x.payload, b));
      of_rank.push_back(sum);
    }
    sent.push_back(std::move(of_rank));
  }
  return detail::program_simulation{programs, m, std::move(times), sent, with_timeline}.run();
}

}  // namespace orrery

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

}  // namespace orrery::detail

namespace orrery {

/// Predicts when everything happens in one call of an attention operator on a machine: its forward, or the backward of
/// `options.pass`.
///
///     const auto found = orrery::simulate(orrery::wallfacer<2>{}, 16, orrery::machine_named("h100"),
///                                         {.length = 131072, .query_heads = 32, .key_heads = 8, .head_dim = 128},
///                                         orrery::causal{}, orrery::zigzag{});
///     std::cout << found.why();
///
/// Simulates the schedule that the operator runs: pruned for the mask and the layout. A tile takes what its visible
/// pairs, counted exactly, take at the machine's rates, and merging what it moves in memory. Ranks are numbered node by
/// node; see `placed` for others.
///
/// What to expect: on published tables of ring attention, its variants and all-to-all (78 rows, all but 24 of tables to
/// which constants were fitted) predictions were off by 6 % on average and by 29 % at worst; on calls of this library
/// over a network, calibrated on its ring, by 4 % and 16 %. See bench/predict.md. Not modelled: other work of a
/// trainer, congestion inside switches, many ranks on one processor.
///
/// Costs the proof of the schedule, once in a process, and see the other `simulate`. Throws `std::invalid_argument`
/// where the operator's constructor would, for sizes, heads, masks and layouts, and as the other `simulate` does.
template <topology Topology, mask Mask = full, layout Layout = contiguous>
[[nodiscard]] prediction simulate(const Topology& topology, int world, const machine& m, const attention_shape& shape,
                                  const Mask& mask = {}, const Layout& layout = {},
                                  const simulation_options& options = {}) {
  m.check();
  m.check_world(world);
  detail::planned_schedule plan =
      detail::plan_schedule(any_topology{topology}, world, shape, mask, detail::layout_source{layout}, options);
  const schedule::list<schedule::program>& programs = plan.programs;
  const attention_sizes sizes{plan.shape,
                              options.pass,
                              programs[0].slices,
                              programs[0].chunks,
                              static_cast<std::size_t>(options.storage_bytes),
                              static_cast<std::size_t>(options.sum_bytes),
                              plan.shards.queries,
                              plan.shards.keys};
  const bool every_pair = mask.classify(0, plan.shape.length - 1, 0, *plan.shape.key_length - 1) == visibility::all;
  detail::attention_times of{
      plan.shape,
      m,
      sizes,
      plan.shards.queries,
      plan.shards.keys,
      [&](const segment& queries, const segment& keys) { return detail::count_visible_pairs(mask, queries, keys); },
      every_pair,
      options.tile_seconds};
  std::vector<detail::step_times> times;
  std::vector<std::vector<std::int64_t>> bytes;
  of.find(programs, options.storage_bytes, options.sum_bytes, times, bytes);
  prediction found = detail::program_simulation{programs, m, std::move(times), bytes, options.with_timeline}.run();
  found.schedule = name_of(topology) + ", " + plan.note;
  for (const schedule::program& p : programs) {
    found.ranks[static_cast<std::size_t>(p.rank)].peak_bytes =
        of.memory_of(p, options.storage_bytes, options.sum_bytes);
  }
  return found;
}

}  // namespace orrery
