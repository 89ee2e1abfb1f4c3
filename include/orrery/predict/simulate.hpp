// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>

#include "orrery/attention/shape.hpp"
#include "orrery/layout/detail/layout_source.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/predict/detail/attention_schedule.hpp"
#include "orrery/predict/detail/program_simulation.hpp"
#include "orrery/predict/detail/timed_schedule.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/prediction.hpp"
#include "orrery/predict/simulation_options.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/topology.hpp"

namespace orrery {

/// Predicts when everything happens in one call of finished programs on a machine. `bytes` is the size of a block, a
/// function of (side, payload, block), and `tile_seconds(program, tile)` the seconds that a tile takes on a rank of
/// speed 1. For interactions of one's own; there is another `simulate` for attention.
///
///     const auto bytes = [](auto, auto, auto) { return std::int64_t{1} << 24; };
///     const auto seconds = [](const auto&, const auto&) { return 1e-3; };
///     simulate(programs_of(ring{}, 4), machine_named("h100"), bytes, seconds).seconds;
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
  return detail::program_simulation{detail::time_programs(programs, m, bytes, tile_seconds), m, with_timeline}.run();
}

}  // namespace orrery

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
/// What to expect: on published tables of ring attention, its variants and all-to-all (78 rows, constants fixed
/// beforehand) predictions were off by 5.6 % on average and by 28.7 % at worst; what was calibrated on the same machine
/// and kernels by less. Not modelled: other work of a trainer, congestion inside switches, many ranks on one processor.
///
/// Where ranks do the same at the same time, one of them is simulated for all: of a topology with a `symmetric_grid`
/// (`ring`, `double_ring`, `all_gather`, `concentric`, `ulysses`, and these in `all_to_all` and `placed`), under a mask
/// that hides nothing, with shards and slices of equal size, ranks of equal speed, and no timeline. The times are those
/// of the whole world but for rounding. Nothing is proven then. Else costs the proof of the schedule, once in a
/// process, and see the other `simulate`.
///
/// Throws `std::invalid_argument` where the operator's constructor would, for sizes, heads, masks and layouts, as the
/// other `simulate` does, and where a world is too large to simulate rank by rank.
template <topology Topology, mask Mask = full, layout Layout = contiguous>
[[nodiscard]] prediction simulate(const Topology& topology, int world, const machine& m, const attention_shape& shape,
                                  const Mask& mask = {}, const Layout& layout = {},
                                  const simulation_options& options = {}) {
  return detail::program_simulation{
      detail::time_attention(any_topology{topology}, world, m, shape, mask, detail::layout_source{layout}, options,
                             !options.with_timeline),
      m, options.with_timeline}
      .run();
}

}  // namespace orrery
