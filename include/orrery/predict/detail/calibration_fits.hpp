// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "orrery/predict/calibration_samples.hpp"
#include "orrery/predict/detail/relative_least_squares.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/prediction.hpp"
#include "orrery/predict/tile_work.hpp"
#include "orrery/schedule/block.hpp"

namespace orrery::detail {

/// How well the samples that depend on a constant agree with its fit: the root of the mean square of their relative
/// errors, each weighted by the constant's share of the sample's time.
class constant_residual {
 public:
  /// `term` are the seconds of `predicted` that the constant is the reason for.
  void add(const std::string& what, double seconds, double predicted, double term) {
    const double share = predicted > 0 && term > 0 ? term / predicted : 0;
    if (!(share > 0)) return;
    const double error = predicted / seconds - 1;
    weights_ += share;
    squares_ += share * error * error;
    if (share >= 0.01) ++samples_;
    if (worst_ >= 0 && share * std::fabs(error) <= worst_) return;
    worst_ = share * std::fabs(error);
    example_ = (what.empty() ? std::string{"a sample"} : what) + " took " + seconds_text(seconds) + ", the fit says " +
               seconds_text(predicted);
  }
  [[nodiscard]] double value() const { return weights_ > 0 ? std::sqrt(squares_ / weights_) : 0; }
  /// Of which the constant is at least 1 %.
  [[nodiscard]] int samples() const noexcept { return samples_; }
  /// The sample that contradicts it most, as a clause.
  [[nodiscard]] const std::string& example() const noexcept { return example_; }

 private:
  double weights_ = 0;
  double squares_ = 0;
  double worst_ = -1;
  int samples_ = 0;
  std::string example_;
};

/// Throws `std::invalid_argument` unless a sample's time can be.
inline void check_seconds(const char* member, const std::string& what, double seconds) {
  if (seconds > 0 && seconds <= machine_limits::seconds) return;
  throw std::invalid_argument{std::string{"orrery: calibrate: "} + member + (what.empty() ? "" : " \"" + what + "\"") +
                              ": seconds is " + initializer_text::code_of(seconds) +
                              ", expected more than 0 and at most " +
                              initializer_text::code_of(machine_limits::seconds)};
}

/// Fits the rates of one pass. For the backward, `known` has launch, prologue and block, which a machine's text says
/// for both passes; else these are fitted as well.
[[nodiscard]] inline machine::kernel_rates fit_rates(std::span<const calibration_samples::tile> tiles,
                                                     schedule::pass pass, machine::kernel_rates known,
                                                     bool fit_overhead) {
  bool has_diagonals = false;
  const auto of_pass = [&](const calibration_samples::tile& one) {
    return (one.work.pass == schedule::pass::forward) == (pass == schedule::pass::forward);
  };
  for (const auto& one : tiles) has_diagonals = has_diagonals || (of_pass(one) && one.work.is_diagonal());
  const auto solve = [&](double prologue, double block) {
    relative_least_squares fit;
    for (const auto& one : tiles) {
      if (!of_pass(one)) continue;
      // A rate of 1 flop per second gives a tile's work.
      const double work = tile_seconds(
          one.work, {.full = 1, .causal = 1, .launch = 0, .prologue = prologue, .block = block, .units = known.units});
      fit.add(one.seconds, fit_overhead ? 0 : known.launch,
              {one.work.is_diagonal() ? 0 : work, one.work.is_diagonal() ? work : 0, fit_overhead ? 1.0 : 0.0, 0.0});
    }
    return fit.solve();
  };
  if (fit_overhead) {
    constexpr double most = 65536;
    const auto overhead = least_of([&](double x, double y) { return solve(x, y).error; }, most);
    known.prologue = overhead[0];
    known.block = overhead[1];
  }
  const auto found = solve(known.prologue, known.block);
  known.full = found.values[0] > 0 ? 1 / found.values[0] : 0;
  known.causal = has_diagonals && found.values[1] > 0 ? 1 / found.values[1] : 0;
  if (known.full == 0) known.full = known.causal;  // diagonal tiles alone
  if (fit_overhead) known.launch = found.values[2];
  return known;
}

/// What the messages of a level say.
struct link_fit {
  double message = 0;   ///< seconds of the host for each message
  double latency = 0;   ///< seconds
  double per_byte = 0;  ///< seconds
  bool half_duplex = false;
  bool is_shared = false;  ///< by the ranks of a group of the level below
  double error = 1;

  /// By how many messages each port is shared.
  [[nodiscard]] double sharers(const calibration_samples::message& m) const noexcept {
    return (half_duplex && m.both_ways ? 2.0 : 1.0) * (is_shared ? m.senders : 1);
  }
  [[nodiscard]] double transfer(const calibration_samples::message& m) const noexcept {
    return sharers(m) * m.posted * static_cast<double>(m.bytes) * per_byte;
  }
  [[nodiscard]] double seconds(const calibration_samples::message& m) const noexcept {
    return m.posted * message + latency + transfer(m);
  }
};

/// Fits a level's messages under each assumption about who shares a port: each rank has its own, in both directions at
/// once, unless another assumption explains all messages clearly better. Latency and bandwidth are then those of the
/// messages that schedules send: of all ranks of a group, in both directions, if there are such.
class link_fitter {
 public:
  /// Unless `fit_message`, it is `message`.
  link_fitter(std::span<const calibration_samples::message> messages, int level, bool fit_message, double message)
      : messages_{messages}, level_{level}, fit_message_{fit_message}, message_{message} {
    for (const auto& m : messages_) {
      if (m.level == level_ && m.both_ways) most_senders_ = (std::max)(most_senders_, m.senders);
    }
  }

  [[nodiscard]] link_fit run() const {
    link_fit best = fit(false, false, false);
    for (const bool is_shared : {false, true}) {
      for (const bool half_duplex : {false, true}) {
        const link_fit one = fit(is_shared, half_duplex, false);
        if (one.error < 0.7 * best.error) best = one;
      }
    }
    return most_senders_ == 0 ? best : fit(best.is_shared, best.half_duplex, true);
  }
  /// True for the messages by which latency and bandwidth are judged.
  [[nodiscard]] bool counts(const calibration_samples::message& m) const noexcept {
    return m.level == level_ && (most_senders_ == 0 || (m.both_ways && m.senders == most_senders_));
  }

 private:
  [[nodiscard]] link_fit fit(bool is_shared, bool half_duplex, bool only_counting) const {
    link_fit made;
    made.is_shared = is_shared;
    made.half_duplex = half_duplex;
    relative_least_squares least;
    for (const auto& m : messages_) {
      if (m.level != level_ || (only_counting && !counts(m))) continue;
      least.add(m.seconds, fit_message_ ? 0 : m.posted * message_,
                {fit_message_ ? static_cast<double>(m.posted) : 0.0, 1.0,
                 made.sharers(m) * m.posted * static_cast<double>(m.bytes), 0.0});
    }
    const auto found = least.solve();
    made.message = fit_message_ ? found.values[0] : message_;
    made.latency = found.values[1];
    made.per_byte = found.values[2];
    made.error = found.error;
    return made;
  }

  std::span<const calibration_samples::message> messages_;
  int level_;
  bool fit_message_;
  double message_;
  int most_senders_ = 0;  // of messages in both directions; 0: there are none
};

/// The factor of seconds = base + factor * term, by relative least squares; at least 0.
class factor_fit {
 public:
  void add(double seconds, double base, double term) {
    sum_ += term * (seconds - base) / (seconds * seconds);
    weight_ += term * term / (seconds * seconds);
  }
  [[nodiscard]] double value() const noexcept { return weight_ > 0 && sum_ > 0 ? sum_ / weight_ : 0; }

 private:
  double sum_ = 0;
  double weight_ = 0;
};

}  // namespace orrery::detail
