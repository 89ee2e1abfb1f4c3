// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "orrery/detail/initializer_text.hpp"
#include "orrery/predict/calibration_samples.hpp"
#include "orrery/predict/detail/calibration_fits.hpp"
#include "orrery/predict/detail/quantity.hpp"
#include "orrery/predict/machine.hpp"
#include "orrery/predict/machine_text.hpp"
#include "orrery/predict/tile_work.hpp"
#include "orrery/schedule/block.hpp"

namespace orrery {

/// What `calibrate` finds: a machine, and how well the samples agree with each of its constants.
struct calibration {
  struct constant {
    std::string name;        ///< as the machine's text calls it: "full", "level node bandwidth"
    std::string value;       ///< with its unit
    double residual = 0;     ///< 0.05: samples that depend on it are off by 5 %; see `calibrate`
    int samples = 0;         ///< of which it is at least 1 % of the time
    bool is_needed = false;  ///< no prediction without it
    std::string refusal{};   ///< empty, or why it is not in the machine, and what to do
  };

  orrery::machine described;  ///< without the constants that are refused
  std::vector<constant> constants;

  /// True if no constant is refused that a prediction needs.
  [[nodiscard]] bool is_usable() const noexcept {
    return std::none_of(constants.begin(), constants.end(),
                        [](const constant& c) { return c.is_needed && !c.refusal.empty(); });
  }
  /// The refusals, a line each; empty if there is none.
  [[nodiscard]] std::string refusals() const {
    std::string text;
    for (const constant& one : constants) text += one.refusal.empty() ? "" : one.refusal + "\n";
    return text;
  }
};

/// The machine's text (see `read_machine`), headed by a comment for each constant: its value and residual, or why it
/// was refused. Throws `std::invalid_argument`, with the refusals, if a constant was refused that a prediction needs.
[[nodiscard]] inline std::string to_string(const calibration& c) {
  if (!c.is_usable()) {
    throw std::invalid_argument{"orrery: calibration: no machine can be written; " + c.refusals()};
  }
  std::size_t widest = 0;
  for (const calibration::constant& one : c.constants) widest = (std::max)(widest, one.name.size());
  std::string text;
  for (const calibration::constant& one : c.constants) {
    if (!one.refusal.empty()) {
      text += "# refused: " + one.refusal + "\n";
      continue;
    }
    std::string name = one.name;
    name.resize(widest, ' ');
    char residual[64];
    std::snprintf(residual, sizeof residual, "residual %.1f %% over %d sample%s", 100 * one.residual, one.samples,
                  one.samples == 1 ? "" : "s");
    text += "# " + name + "  " + one.value + (one.samples > 0 ? std::string{"  "} + residual : "") + "\n";
  }
  return text + to_string(c.described);
}

}  // namespace orrery

namespace orrery::detail {

/// Fits everything. See `calibrate`.
class calibrator {
 public:
  calibrator(const calibration_samples& samples, const machine& frame, double limit)
      : samples_{samples}, limit_{limit} {
    made_.described = frame;
  }

  [[nodiscard]] calibration run() {
    check();
    tiles(schedule::pass::forward);
    tiles(schedule::pass::circulate_keys);
    levels();
    copies();
    merges();
    hidden();
    calls();
    return std::move(made_);
  }

 private:
  using constant = calibration::constant;

  [[nodiscard]] machine& m() noexcept { return made_.described; }

  void check() const {
    for (const auto& one : samples_.tiles) check_seconds("tiles", one.what, one.seconds);
    for (const auto& one : samples_.accumulated) {
      check_seconds("accumulated", one.what, one.seconds);
      check_seconds("accumulated", one.what, one.seconds_begun);
    }
    for (const auto& one : samples_.copies) check_seconds("copies", one.what, one.seconds);
    for (const auto& one : samples_.hidden) {
      check_seconds("hidden", one.what, one.seconds);
      check_seconds("hidden", one.what, one.tile_seconds);
      check_seconds("hidden", one.what, one.transfer_seconds);
    }
    for (const auto& one : samples_.calls) check_seconds("calls", one.what, one.seconds);
    const auto refuse = [](const std::string& why) { throw std::invalid_argument{"orrery: calibrate: " + why}; };
    for (const auto& one : samples_.messages) {
      check_seconds("messages", one.what, one.seconds);
      if (one.level < 0 || static_cast<std::size_t>(one.level) >= made_.described.levels.size()) {
        refuse("messages: level is " + std::to_string(one.level) + ", but the machine has " +
               std::to_string(made_.described.levels.size()) + " levels, the innermost one is 0");
      }
      if (one.posted < 1 || one.senders < 1 || one.bytes < 0) {
        refuse("messages: posted is " + std::to_string(one.posted) + ", senders " + std::to_string(one.senders) +
               ", bytes " + std::to_string(one.bytes) + ", expected at least 1, 1 and 0");
      }
    }
    if (!(limit_ > 0)) refuse("limit is " + initializer_text::code_of(limit_) + ", expected more than 0, as 0.15");
    for (const bool backward : {false, true}) {
      bool has_full = false, has_diagonals = false;
      for (const auto& one : samples_.tiles) {
        if ((one.work.pass != schedule::pass::forward) != backward) continue;
        (one.work.is_diagonal() ? has_diagonals : has_full) = true;
      }
      if (!has_full && (has_diagonals || !backward)) {
        refuse(std::string{"tiles: there is no "} + (backward ? "backward" : "forward") +
               " tile of which the mask hides nothing; the rate of full tiles needs at least one");
      }
    }
  }

  /// Notes a constant. Returns false if it is refused.
  bool note(const std::string& name, double value, dimension of, const constant_residual& r, bool is_needed,
            const char* noun = nullptr) {
    constant one;
    one.name = name;
    one.value = noun == nullptr ? quantity_text(value, of) : initializer_text::code_of(value) + " " + noun;
    one.residual = r.value();
    one.samples = r.samples();
    one.is_needed = is_needed;
    const bool missing = is_needed && !(value > 0);
    if (missing) {
      one.refusal = name + ": the samples do not grow with it; measure larger sizes";
    } else if (r.samples() > 0 && r.value() > limit_) {
      char text[160];
      std::snprintf(text, sizeof text, "%s: its %d sample%s from the fit by %.0f %%, more than %.0f %%", name.c_str(),
                    r.samples(), r.samples() == 1 ? " differs" : "s differ", 100 * r.value(), 100 * limit_);
      one.refusal = std::string{text} + " (" + r.example() +
                    "); measure again with nothing else running and ranks pinned to cores, with more repetitions, or "
                    "write this constant into the file by hand";
    }
    made_.constants.push_back(one);
    return one.refusal.empty();
  }
  /// To four digits in the unit in which it is written: no measurement has more.
  [[nodiscard]] static double rounded(double value, dimension of) {
    double factor = 1;
    for (const unit& one : every_unit) {
      const bool is_written = std::string_view{one.name}.find('i') == std::string_view::npos;  // no GiB, Gbit/s
      if (one.of == of && is_written && value >= one.factor) factor = one.factor;
    }
    char text[40];
    std::snprintf(text, sizeof text, "%.4g", value / factor);
    return std::strtod(text, nullptr) * factor;
  }
  [[nodiscard]] static double rounded(double value) {
    char text[40];
    std::snprintf(text, sizeof text, "%.4g", value);
    return std::strtod(text, nullptr);
  }

  void tiles(schedule::pass p) {
    const bool is_forward = p == schedule::pass::forward;
    bool any = false;
    for (const auto& one : samples_.tiles) any = any || (one.work.pass == schedule::pass::forward) == is_forward;
    if (!any) return;
    machine::kernel_rates rates = fit_rates(samples_.tiles, p, m().device.forward, is_forward);
    rates.full = rounded(rates.full, dimension::computing);
    rates.causal = rounded(rates.causal, dimension::computing);
    rates.launch = rounded(rates.launch, dimension::time);
    rates.prologue = rounded(rates.prologue);
    rates.block = rounded(rates.block);
    constant_residual full, causal, launch, prologue, block;
    for (const auto& one : samples_.tiles) {
      if ((one.work.pass == schedule::pass::forward) != is_forward) continue;
      const double all = tile_seconds(one.work, rates);
      const auto without = [&](double machine::kernel_rates::*which) {
        machine::kernel_rates r = rates;
        r.*which = 0;
        return all - tile_seconds(one.work, r);
      };
      const bool is_diagonal = one.work.is_diagonal() && rates.causal > 0;
      (is_diagonal ? causal : full).add(one.what, one.seconds, all, all - rates.launch);
      launch.add(one.what, one.seconds, all, rates.launch);
      prologue.add(one.what, one.seconds, all, without(&machine::kernel_rates::prologue));
      block.add(one.what, one.seconds, all, without(&machine::kernel_rates::block));
    }
    if (!note(is_forward ? "full" : "backward", rates.full, dimension::computing, full, true)) {
      rates.full = 1;  // which to_string does not write
    }
    if (rates.causal > 0 &&
        !note(is_forward ? "causal" : "backward-causal", rates.causal, dimension::computing, causal, false)) {
      rates.causal = 0;
    }
    if (is_forward) {
      const machine::kernel_rates defaults;
      if (!note("launch", rates.launch, dimension::time, launch, false)) rates.launch = 0;
      if (!note("prologue", rates.prologue, dimension::share, prologue, false, "columns")) {
        rates.prologue = defaults.prologue;
      }
      if (!note("block", rates.block, dimension::share, block, false, "rows")) rates.block = defaults.block;
    }
    (is_forward ? m().device.forward : m().device.backward) = rates;
  }

  void levels() {
    bool message_known = false;
    for (std::size_t l = 0; l < m().levels.size(); ++l) {
      bool any = false, several = false;
      for (const auto& one : samples_.messages) {
        if (one.level != static_cast<int>(l)) continue;
        any = true;
        several = several || one.posted > 1;
      }
      if (!any) continue;
      const bool fit_message = !message_known && several;
      const link_fitter fitter{samples_.messages, static_cast<int>(l), fit_message, m().device.message};
      link_fit fit = fitter.run();
      machine::level& level = m().levels[l];
      level.bandwidth = fit.per_byte > 0 ? rounded(1 / fit.per_byte, dimension::bandwidth) : 0;
      level.latency = rounded(fit.latency, dimension::time);
      level.full_duplex = !fit.half_duplex;
      if (l > 0) level.shared_by = fit.is_shared ? m().levels[l - 1].name : "";
      fit.per_byte = level.bandwidth > 0 ? 1 / level.bandwidth : 0;
      fit.latency = level.latency;
      fit.message = rounded(fit.message, dimension::time);
      constant_residual bandwidth, latency, message;
      for (const auto& one : samples_.messages) {
        if (!fitter.counts(one)) continue;
        bandwidth.add(one.what, one.seconds, fit.seconds(one), fit.transfer(one));
        latency.add(one.what, one.seconds, fit.seconds(one), fit.latency);
        message.add(one.what, one.seconds, fit.seconds(one), one.posted * fit.message);
      }
      const std::string name = "level " + level.name + " ";
      (void)note(name + "bandwidth", level.bandwidth, dimension::bandwidth, bandwidth, true);
      if (!note(name + "latency", level.latency, dimension::time, latency, false)) level.latency = 0;
      if (!fit_message) continue;
      message_known = true;
      if (note("message", fit.message, dimension::time, message, false)) m().device.message = fit.message;
    }
  }

  void copies() {
    if (samples_.copies.empty()) return;
    factor_fit fit;
    for (const auto& one : samples_.copies) fit.add(one.seconds, 0, one.bytes);
    const double rate = fit.value() > 0 ? rounded(1 / fit.value(), dimension::bandwidth) : 0;
    constant_residual r;
    for (const auto& one : samples_.copies) {
      const double predicted = rate > 0 ? one.bytes / rate : 0;
      r.add(one.what, one.seconds, predicted, predicted);
    }
    if (note("memory", rate, dimension::bandwidth, r, false)) m().device.memory = rate;
  }

  /// Bytes that are moved for each element of a result, at the rate of the memory.
  void merges() {
    if (samples_.accumulated.empty() || m().device.memory <= 0) return;
    for (const bool backward : {false, true}) {
      const auto elements = [](const tile_work& w) {
        return static_cast<double>(w.rows) * static_cast<double>(w.query_heads * w.batch * w.value_dim);
      };
      factor_fit fit;
      bool any = false;
      for (const auto& one : samples_.accumulated) {
        if ((one.work.pass != schedule::pass::forward) != backward) continue;
        any = true;
        fit.add(one.seconds, one.seconds_begun, elements(one.work) / m().device.memory);
      }
      if (!any) continue;
      const double merge = rounded(fit.value());
      constant_residual r;
      for (const auto& one : samples_.accumulated) {
        if ((one.work.pass != schedule::pass::forward) != backward) continue;
        const double term = merge * elements(one.work) / m().device.memory;
        r.add(one.what, one.seconds, one.seconds_begun + term, term);
      }
      if (note(backward ? "backward-merge" : "merge", merge, dimension::size, r, false)) {
        (backward ? m().device.backward : m().device.forward).merge = merge;
      }
    }
  }

  void hidden() {
    if (samples_.hidden.empty()) return;
    factor_fit fit;
    for (const auto& one : samples_.hidden) {
      fit.add(one.seconds, one.tile_seconds, (std::min)(one.tile_seconds, one.transfer_seconds));
    }
    const double share = (std::min)(rounded(fit.value(), dimension::share), 1.0);
    constant_residual r;
    for (const auto& one : samples_.hidden) {
      const double term = share * (std::min)(one.tile_seconds, one.transfer_seconds);
      r.add(one.what, one.seconds, one.tile_seconds + term, term);
    }
    if (note("slowed", share, dimension::share, r, false)) m().device.slowed = share;
  }

  /// What calls take that neither tiles nor messages explain.
  void calls() {
    if (samples_.calls.empty()) return;
    const machine::processor& d = m().device;
    const auto joins = [](const machine::level& l) { return l.count > 1; };
    const auto first = std::find_if(m().levels.begin(), m().levels.end(), joins);
    const machine::level link = first == m().levels.end() ? machine::level{} : *first;
    const auto explained = [&](const calibration_samples::call& one) {
      const double tile = tile_seconds(one.work, d.rates(one.work.pass));
      const double transfer = link.latency + (link.bandwidth > 0 ? static_cast<double>(one.bytes) / link.bandwidth : 0);
      return one.messages * (d.message + (std::max)(tile, transfer)) + (one.steps - one.messages) * tile;
    };
    relative_least_squares fit;
    for (const auto& one : samples_.calls) {
      fit.add(one.seconds, explained(one), {1.0, static_cast<double>(one.steps), 0.0, 0.0});
    }
    const auto found = fit.solve();
    const double call = rounded(found.values[0], dimension::time), step = rounded(found.values[1], dimension::time);
    constant_residual of_call, of_step;
    for (const auto& one : samples_.calls) {
      const double predicted = explained(one) + call + one.steps * step;
      of_call.add(one.what, one.seconds, predicted, call);
      of_step.add(one.what, one.seconds, predicted, one.steps * step);
    }
    if (note("call", call, dimension::time, of_call, false)) m().device.call = call;
    if (note("step", step, dimension::time, of_step, false)) m().device.step = step;
  }

  const calibration_samples& samples_;
  double limit_;
  calibration made_;
};

}  // namespace orrery::detail

namespace orrery {

/// Fits the constants of a machine to what was measured on it. `frame` says what cannot be measured so: its name, the
/// levels with their members, and the `units` of a device.
///
///     orrery::calibration_samples samples;
///     samples.tiles.push_back({.work = full_tile, .seconds = 0.034, .what = "2048 x 2048"});
///     samples.messages.push_back({.bytes = 1 << 20, .seconds = 1.1e-4});
///     ...
///     const auto found = orrery::calibrate(samples, {.name = "here", .levels = {{.name = "node", .count = 2}}});
///     std::ofstream{"here.txt"} << to_string(found);
///
/// Fits by least squares of relative errors, no constant below 0. From tiles: full, causal, launch, prologue, block and
/// the backward's rates; from messages: message, and latency, bandwidth, duplex and sharing of each level; from the
/// others: memory, merge, slowed, call, step. A level is judged by messages of all ranks in both directions, if there
/// are such: schedules send them. Constants without samples stay as `frame` has them.
///
/// The residual of a constant is the root mean square of the relative errors of its samples, each weighted by the
/// constant's share of its time. One that exceeds `limit` is refused: it is left out of the machine, with a message
/// that says which, the sample that contradicts it most, and what to do. Rates of full tiles and bandwidths cannot be
/// left out: then the calibration is not usable.
///
/// Costs some milliseconds. Throws `std::invalid_argument` for samples that cannot be: seconds that are not above 0, a
/// level that the frame does not have, no full tile.
[[nodiscard]] inline calibration calibrate(const calibration_samples& samples, const machine& frame,
                                           double limit = 0.15) {
  return detail::calibrator{samples, frame, limit}.run();
}

}  // namespace orrery
