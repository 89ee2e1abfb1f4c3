// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "orrery/attention/shape.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/prediction.hpp"
#include "orrery/predict/simulate.hpp"
#include "orrery/predict/simulation_options.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/named.hpp"
#include "orrery/topology/placed.hpp"
#include "orrery/topology/ring.hpp"

namespace orrery {

/// What `recommend` finds: schedules, the best first, and those that cannot be used.
struct recommendation {
  struct entry {
    any_topology topology;
    schedule::pass circulate;  ///< the backward's policy; `pass::forward` if there is no backward
    prediction forward;
    prediction backward;  ///< if there is one
    bool is_tie = false;  ///< not more than 3 % slower than the fastest

    [[nodiscard]] double seconds() const noexcept { return forward.seconds + backward.seconds; }
    [[nodiscard]] std::int64_t peak_bytes() const noexcept {
      return (std::max)(forward.peak_bytes(), backward.peak_bytes());
    }
    /// "concentric<2,2>, circulate_keys".
    [[nodiscard]] std::string name() const {
      return topology.name() + (circulate == schedule::pass::forward ? "" : std::string{", "} + name_of(circulate));
    }
  };
  struct refused {
    std::string name;
    std::string reason;
  };

  std::vector<entry> ranked;  ///< by time; but of those that tie with the fastest, that with the least memory is first
  std::vector<refused> others;

  /// The first one. Throws `std::invalid_argument`, with the reasons, if none can be used.
  [[nodiscard]] const entry& best() const {
    if (!ranked.empty()) return ranked.front();
    std::string message = "orrery: recommend: no schedule can be used";
    for (const refused& one : others) message += "; " + one.name + ": " + one.reason;
    throw std::invalid_argument{message};
  }
};

/// A table for people: a line for each schedule, with its time relative to the first one's, its time, its memory, and
/// what limits the longer of its passes; then those that were refused. At most `rows` of each.
[[nodiscard]] inline std::string to_string(const recommendation& r, std::size_t rows = 20) {
  std::string text;
  std::size_t widest = 0;
  for (std::size_t i = 0; i < r.ranked.size() && i < rows; ++i) {
    widest = (std::max)(widest, r.ranked[i].name().size());
  }
  for (std::size_t i = 0; i < r.ranked.size() && i < rows; ++i) {
    const recommendation::entry& one = r.ranked[i];
    char ratio[32];
    std::snprintf(ratio, sizeof ratio, "%5.2f", one.seconds() / r.ranked.front().seconds());
    const prediction& longer = one.backward.seconds > one.forward.seconds ? one.backward : one.forward;
    std::string name = one.name();
    name.resize(widest, ' ');
    text += std::string{ratio} + "  " + name + "  " + detail::seconds_text(one.seconds()) + ", " +
            detail::bytes_text(static_cast<double>(one.peak_bytes())) +
            (longer.pass == schedule::pass::forward ? "; forward " : "; backward ") + longer.why() + "\n";
  }
  if (r.ranked.size() > rows) text += "and " + std::to_string(r.ranked.size() - rows) + " slower ones\n";
  for (std::size_t i = 0; i < r.others.size() && i < rows; ++i) {
    text += "refused: " + r.others[i].name + ": " + r.others[i].reason + "\n";
  }
  if (r.others.size() > rows) text += "and " + std::to_string(r.others.size() - rows) + " others that were refused\n";
  return text;
}

/// The topologies of this library for a world on a machine, with their parameters: rings, double rings whose inner ring
/// is a node, WallFacer's, concentric ones, all-to-all of heads alone and before a ring; and, where the machine has
/// nodes, those with teams a second time with their rings in nodes (see `placed`). At most about 60.
[[nodiscard]] inline std::vector<any_topology> schedules_for(int world, const machine& m) {
  std::vector<std::string> names{"ring", "all_gather"};
  const auto number = [](int n) { return std::to_string(n); };
  const std::int64_t node = m.levels.empty() ? 1 : m.ranks_of_level(0);
  for (int n = 2; n < world; ++n) {
    if (world % n != 0) continue;
    if (n == node) names.push_back("double_ring<" + number(n) + ">");
    if (world % (n * n) == 0) names.push_back("wallfacer<" + number(n) + ">");
    if (n <= 64) names.push_back("usp<" + number(n) + ">");
    // Rows of up to 16, or of as many ranks as a column, and bundles of up to 8: what is beyond moves more.
    const bool moves_little = n <= 16 || std::int64_t{n} * n <= world;
    if (moves_little) names.push_back("concentric<" + number(n) + ">");
    for (int bundle = 2; moves_little && bundle <= 8 && n * bundle < world; bundle *= 2) {
      if (world / n % bundle == 0) names.push_back("concentric<" + number(n) + "," + number(bundle) + ">");
    }
  }
  // Keys that stay where they are: for few queries and many keys.
  if (world > 1) names.push_back("concentric<" + number(world) + ">");
  if (world > 1) names.emplace_back("ulysses");
  std::vector<any_topology> all;
  all.reserve(2 * names.size());
  for (const std::string& name : names) all.push_back(topology_named(name));
  if (m.levels.size() < 2 || node == 1 || node >= world) return all;
  for (const std::string& name : names) {
    if (name.rfind("concentric", 0) == 0 || name.rfind("wallfacer", 0) == 0 || name.rfind("usp", 0) == 0)
      all.emplace_back(placed{topology_named(name), rings_in_nodes{}});
  }
  return all;
}

/// Ranks schedules for attention over the ranks of a machine by the predicted time of a forward and a backward, the
/// best first.
///
///     const auto found = orrery::recommend(16, machine, {.length = 131072, .query_heads = 32, .key_heads = 8,
///                                          .head_dim = 128}, orrery::causal{}, orrery::zigzag{});
///     std::cout << to_string(found);
///     orrery::attention<orrery::any_topology, orrery::flash<float>> attend{world, shape, mask, layout,
///                                                                          found.best().topology};
///
/// `candidates` are topologies of any kind, placed ones and your own among them; without them, `schedules_for(world,
/// machine)`. Backwards are tried with both policies, unless the shape is `forward_only`; run the best one with its
/// `circulate` in the shape. What is not more than 3 % slower than the fastest counts as equal, since predictions are
/// not better, and that of them which needs the least memory comes first. Topologies that refuse the world, cut heads
/// that are too few, leave out pairs that the mask needs, or need more memory than the machine's devices have, are in
/// `others` with the reason.
///
/// Costs a `simulate` for each candidate and pass. Throws `std::invalid_argument` for a machine, shape or layout that
/// no schedule suits.
template <mask Mask = full, layout Layout = contiguous>
[[nodiscard]] recommendation recommend(int world, const machine& m, const attention_shape& shape, const Mask& mask = {},
                                       const Layout& layout = {}, simulation_options options = {},
                                       std::vector<any_topology> candidates = {}) {
  constexpr double tie = 1.03;
  recommendation found;
  m.check();
  m.check_world(world);
  if (candidates.empty()) {
    candidates = schedules_for(world, m);
    // What a ring is refused for, all are: throws.
    options.pass = schedule::pass::forward;
    (void)simulate(ring{}, world, m, shape, mask, layout, options);
  }
  std::vector<schedule::pass> policies{schedule::pass::circulate_keys, schedule::pass::circulate_queries};
  if (shape.forward_only) policies = {schedule::pass::forward};
  for (const any_topology& one : candidates) {
    for (const schedule::pass policy : policies) {
      recommendation::entry tried{one, policy, {}, {}, false};
      try {
        options.pass = schedule::pass::forward;
        const bool is_known = !found.ranked.empty() && policy != policies.front() &&
                              found.ranked.back().topology == one;  // the forward is that of the policy before
        tried.forward = is_known ? found.ranked.back().forward : simulate(one, world, m, shape, mask, layout, options);
        if (policy != schedule::pass::forward) {
          options.pass = policy;
          tried.backward = simulate(one, world, m, shape, mask, layout, options);
        }
      } catch (const std::invalid_argument& e) {
        std::string reason = e.what();
        const std::string prefix = "orrery: simulate: ";
        if (reason.compare(0, prefix.size(), prefix) == 0) reason.erase(0, prefix.size());
        found.others.push_back({tried.name(), reason});
        continue;
      }
      if (m.device.capacity > 0 && tried.peak_bytes() > m.device.capacity) {
        found.others.push_back({tried.name(), "needs " + detail::bytes_text(static_cast<double>(tried.peak_bytes())) +
                                                  " on a rank, and a device has " +
                                                  detail::bytes_text(static_cast<double>(m.device.capacity))});
        continue;
      }
      found.ranked.push_back(std::move(tried));
    }
  }
  const auto faster = [](const recommendation::entry& a, const recommendation::entry& b) {
    return a.seconds() < b.seconds();
  };
  std::stable_sort(found.ranked.begin(), found.ranked.end(), faster);
  if (found.ranked.empty()) return found;
  const double fastest = found.ranked.front().seconds();
  auto end_of_ties = found.ranked.begin();
  while (end_of_ties != found.ranked.end() && end_of_ties->seconds() <= tie * fastest) (end_of_ties++)->is_tie = true;
  const auto least = std::min_element(found.ranked.begin(), end_of_ties,
                                      [](const auto& a, const auto& b) { return a.peak_bytes() < b.peak_bytes(); });
  std::rotate(found.ranked.begin(), least, least + 1);
  return found;
}

}  // namespace orrery
