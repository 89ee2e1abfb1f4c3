// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "orrery/detail/initializer_text.hpp"
#include "orrery/schedule/block.hpp"

namespace orrery {

/// A machine on which a schedule may run, as `simulate` sees it. All numbers are in base units: seconds, bytes, bytes
/// per second, floating-point operations per second.
///
/// A machine has levels, from the inside out, and a device for each rank; ranks are numbered node by node. People write
/// it as text: see `read_machine`. In a program it is an aggregate:
///
///     orrery::machine two_nodes{.name = "2 nodes of 8",
///                               .levels = {{.name = "node", .count = 8, .bandwidth = 365e9, .latency = 12e-6},
///                                          {.name = "cluster", .count = 2, .bandwidth = 48e9, .latency = 20e-6}}};
///
/// What is modelled was found on about 500 published measurements: time of a tile with a rate for full and one for
/// diagonal tiles, cost of a merge apart from the kernel, and ports that are shared fairly. Ramps of the bandwidth,
/// protocols, packets and congestion inside switches are left out.
struct machine {
  /// Links between the members of a level: devices of a node, nodes of a cluster. A message takes latency + bytes /
  /// bandwidth, with both ends posted, if it shares its ports with no other.
  struct level {
    std::string name;      ///< one word
    int count = 1;         ///< members of the level below: devices of a node, nodes of a cluster
    std::string link{};    ///< what the link is called; for people
    double bandwidth = 0;  ///< bytes per second of a port in one direction, the plateau that a benchmark sees
    double latency = 0;    ///< seconds
    /// Who shares a port. Empty: each device has its own. Else the name of a level, this one or one below it: all
    /// devices of one of its groups share `ports` ports. In the level "cluster", "node" is a network card for each
    /// node.
    std::string shared_by{};
    int ports = 1;            ///< that a group shares; one message uses one of them
    bool full_duplex = true;  ///< else both directions share the bandwidth

    bool operator==(const level&) const = default;
  };

  /// How fast a device computes tiles of one pass. A tile takes launch + flop / rate + tail, with
  /// flop = factor * (pairs + rows * prologue + diagonal rows * block) * heads,
  /// and a tail of the longest row's block on one unit.
  struct kernel_rates {
    double full = 0;       ///< flop per second of tiles of which the mask hides nothing
    double causal = 0;     ///< of tiles on the diagonal; 0: as full
    double launch = 0;     ///< seconds of each tile
    double prologue = 50;  ///< key columns' worth of work for each row of a tile
    double block = 128;    ///< rows of a block of the kernel
    double units = 1;      ///< blocks that are computed at a time: multiprocessors, or threads
    /// Bytes that are moved for each element of a partial when the result of a tile is merged into one that was begun
    /// before, in a pass of its own; 0 where the kernel accumulates into it.
    double merge = 0;

    bool operator==(const kernel_rates&) const = default;
  };

  /// What a rank computes with.
  struct processor {
    std::string name{};
    kernel_rates forward{};
    kernel_rates backward{};    ///< full == 0: the forward's rates
    double memory = 0;          ///< bytes per second, for merging and packing; 0: these take no time
    std::int64_t capacity = 0;  ///< bytes of memory; 0: not known
    double call = 0;            ///< seconds of the host for each call
    double step = 0;            ///< for each step
    double message = 0;         ///< for each exchange that is posted
    /// Share of the time of arriving messages by which they slow the tile of their step; where both directions share a
    /// link, of all messages that the rank sends and receives.
    double slowed = 0;

    [[nodiscard]] const kernel_rates& rates(schedule::pass p) const noexcept {
      return p == schedule::pass::forward || backward.full == 0 ? forward : backward;
    }
    bool operator==(const processor&) const = default;
  };

  std::string name{};
  std::vector<level> levels{};
  processor device{};
  std::vector<double> speed{};  ///< of ranks, relative to `device`: stragglers; 1 for ranks beyond its end

  /// The ranks of one group of level `l`: 8 of the level "node". With -1, a device's: 1.
  [[nodiscard]] std::int64_t ranks_of_level(int l) const noexcept {
    std::int64_t ranks = 1;
    for (int i = 0; i <= l; ++i) ranks *= levels[static_cast<std::size_t>(i)].count;
    return ranks;
  }
  /// All ranks.
  [[nodiscard]] std::int64_t ranks() const noexcept { return ranks_of_level(static_cast<int>(levels.size()) - 1); }
  [[nodiscard]] double speed_of(int rank) const noexcept {
    const auto at = static_cast<std::size_t>(rank);
    return at < speed.size() ? speed[at] : 1;
  }

  /// Throws `std::invalid_argument` if the machine cannot be: a level without members or bandwidth, a number that is
  /// negative, not finite or beyond what there is, a level that shares with one that is not below it.
  void check() const;
  /// Throws `std::invalid_argument` if the machine is smaller than the world, or if the ranks do not fill its nodes.
  void check_world(int world) const;

  bool operator==(const machine&) const = default;
};

}  // namespace orrery

namespace orrery::detail {

/// The largest numbers of each dimension that a machine may have. They are far beyond any machine, so that what is
/// larger is a slip, and no computation overflows.
struct machine_limits {
  static constexpr double seconds = 1e4;
  static constexpr double bytes = 1e18;
  static constexpr double bytes_per_second = 1e18;
  static constexpr double flop_per_second = 1e21;
  static constexpr double number = 1e9;
  static constexpr int members = 1 << 20;
};

/// Checks the numbers of a machine; `where` begins the message.
class machine_checker {
 public:
  explicit machine_checker(std::string where) : where_{"orrery: machine: " + std::move(where)} {}

  void between(const char* field, double value, double least, double most) const {
    if (value >= least && value <= most) return;
    refuse(field, initializer_text::code_of(value),
           "a number from " + initializer_text::code_of(least) + " to " + initializer_text::code_of(most));
  }
  void positive(const char* field, double value, double most) const {
    if (value > 0 && value <= most) return;
    refuse(field, initializer_text::code_of(value), "a number above 0, up to " + initializer_text::code_of(most));
  }
  [[noreturn]] void refuse(const char* field, const std::string& value, const std::string& expected) const {
    throw std::invalid_argument{where_ + field + " is " + value + ", expected " + expected};
  }
  void rates(const machine::kernel_rates& r, bool may_be_absent) const {
    using most = machine_limits;
    if (may_be_absent) {
      between("full", r.full, 0, most::flop_per_second);
    } else {
      positive("full", r.full, most::flop_per_second);
    }
    between("causal", r.causal, 0, most::flop_per_second);
    between("launch", r.launch, 0, most::seconds);
    between("prologue", r.prologue, 0, most::number);
    between("block", r.block, 0, most::number);
    between("units", r.units, 1, most::number);
    between("merge", r.merge, 0, most::number);
  }

 private:
  std::string where_;
};

/// True of one word, as names of levels are.
[[nodiscard]] inline bool is_word(const std::string& text) noexcept {
  if (text.empty()) return false;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) <= ' ' || c == '#') return false;
  }
  return true;
}

}  // namespace orrery::detail

namespace orrery {

inline void machine::check() const {
  using detail::machine_checker;
  using most = detail::machine_limits;
  if (levels.empty()) {
    machine_checker{""}.refuse("levels", "empty", "at least one level, as {.name = \"node\", .count = 8, ...}");
  }
  std::int64_t all = 1;
  for (std::size_t l = 0; l < levels.size(); ++l) {
    const level& one = levels[l];
    const machine_checker in{"level \"" + one.name + "\": "};
    if (!detail::is_word(one.name)) in.refuse("name", "\"" + one.name + "\"", "one word");
    for (std::size_t i = 0; i < l; ++i) {
      if (levels[i].name == one.name) in.refuse("name", "given to two levels", "another name for each");
    }
    in.between("count", one.count, 1, most::members);
    all *= one.count;
    in.between("the number of ranks", static_cast<double>(all), 1, most::members);
    if (one.count > 1) {
      in.positive("bandwidth", one.bandwidth, most::bytes_per_second);
    } else {
      in.between("bandwidth", one.bandwidth, 0, most::bytes_per_second);
    }
    in.between("latency", one.latency, 0, most::seconds);
    in.between("ports", one.ports, 1, most::members);
    bool known = one.shared_by.empty();
    for (std::size_t i = 0; i <= l; ++i) known = known || levels[i].name == one.shared_by;
    if (!known) in.refuse("shared_by", "\"" + one.shared_by + "\"", "the name of this level or of one below it");
  }
  const machine_checker of{"device: "};
  machine_checker{"forward: "}.rates(device.forward, false);
  machine_checker{"backward: "}.rates(device.backward, true);
  of.between("memory", device.memory, 0, most::bytes_per_second);
  of.between("capacity", static_cast<double>(device.capacity), 0, most::bytes);
  of.between("call", device.call, 0, most::seconds);
  of.between("step", device.step, 0, most::seconds);
  of.between("message", device.message, 0, most::seconds);
  of.between("slowed", device.slowed, 0, 1);
  if (static_cast<double>(speed.size()) > static_cast<double>(all)) {
    machine_checker{""}.refuse("speed", "of " + std::to_string(speed.size()) + " ranks",
                               "at most one for each of the " + std::to_string(all) + " ranks");
  }
  for (const double one : speed) machine_checker{""}.between("speed", one, 1e-6, 1e6);
}

inline void machine::check_world(int world) const {
  const auto refuse = [&](const std::string& why) {
    throw std::invalid_argument{"orrery: machine \"" + name + "\": world is " + std::to_string(world) + ", " + why};
  };
  if (world < 1) refuse("expected at least 1");
  if (world > ranks()) {
    refuse("but the machine has " + std::to_string(ranks()) + " ranks; give its outermost level, \"" +
           levels.back().name + "\", more members than " + std::to_string(levels.back().count));
  }
  for (std::size_t l = 0; l + 1 < levels.size(); ++l) {
    const std::int64_t group = ranks_of_level(static_cast<int>(l));
    if (world <= group) break;
    if (world % group != 0) {
      refuse("which does not divide into groups of the level \"" + levels[l].name + "\", of " + std::to_string(group) +
             " ranks each; use a multiple of that, or give the level another number of members");
    }
  }
}

}  // namespace orrery
