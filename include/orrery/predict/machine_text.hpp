// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

#include "orrery/detail/initializer_text.hpp"
#include "orrery/predict/detail/machine_reader.hpp"
#include "orrery/predict/detail/machine_words.hpp"
#include "orrery/predict/detail/quantity.hpp"
#include "orrery/predict/machine.hpp"

namespace orrery {

/// Reads a machine that people have written:
///
///     const orrery::machine cluster = orrery::read_machine(R"(
///       machine  4 nodes of 8 H100
///       like     h100
///       level    cluster  4 nodes  25 GB/s  20 us  shared by node   # one card for 8 devices
///       host     call 200 us
///     )");
///
/// Lines say one thing each; indentation is free, and '#' begins a comment:
///
/// - `machine NAME`: a machine follows. A text may have several.
/// - `like NAME`: it is like a preset, or another machine of the text, but for what the next lines say.
/// - `device`: the rates `full`, `causal`, `backward`, `backward-causal` in FLOP/s; the time `launch`; the numbers
///   `prologue` (columns), `block` (rows) and `units`; the bytes `merge` and `backward-merge`; `memory` (bytes per
///   second), `capacity` (bytes), `slowed` (%). What they mean, `machine` says. `like NAME`, first: the device of that
///   machine.
/// - `level NAME COUNT MEMBERS`: from the inside out; then a name of the link, its bandwidth and latency, `each its
///   own` or `shared by LEVEL`, `2 ports`, `half duplex`. Of a level that `like` gave, only what changes.
/// - `host`: the times `call`, `step`, `message`.
/// - `rank 3 speed 90 %`, `rank 8-15 speed 90 %`: relative to `device`.
///
/// Every number has its unit: s, ms, us, ns; B, KB, KiB and so on; B/s, GB/s, bit/s, Gbit/s and so on; FLOP/s, TFLOP/s,
/// GF, TF. Without `name`, the first machine of the text is read.
///
/// Throws `std::invalid_argument` with line, column and the nearest thing that there is: for a key or unit that is not
/// known, a number without a unit, "Gb", which some read as bits and some as bytes, numbers that are negative, zero or
/// huge where no machine has them, a level without members or bandwidth, a fact that is given twice, a machine that is
/// like itself.
[[nodiscard]] inline machine read_machine(std::string_view text, std::string_view name = {}) {
  return detail::machine_reader{text}.read(name);
}

/// The preset of this name: `a100`, `h100`, `h800`, `h200` and `b200` are up to 128 nodes of 8 devices with a network
/// card each, `cpu-100gbe` and `cpu-10gbe` up to 1024 nodes without. Throws `std::invalid_argument` for another name,
/// with the nearest one and all that there are.
[[nodiscard]] inline machine machine_named(std::string_view name) {
  for (const std::string& known : detail::machine_reader::presets().names()) {
    if (known == name) return detail::machine_reader::presets().read(name);
  }
  throw std::invalid_argument{"orrery: machine_named: " +
                              detail::unknown_name("machine", name, detail::machine_reader::presets().names())};
}

/// The machine as a text, which `read_machine` reads as an equal machine if its names are words: of the machine, any
/// without '#' and double spaces. Throws `std::invalid_argument` if the machine cannot be.
[[nodiscard]] inline std::string to_string(const machine& m) {
  using detail::dimension;
  using detail::quantity_text;
  m.check();
  const auto number = [](double value) { return detail::initializer_text::code_of(value); };
  std::string text = "machine " + (m.name.empty() ? "unnamed" : m.name) + "\n";
  const machine::kernel_rates& f = m.device.forward;
  const machine::kernel_rates& b = m.device.backward;
  const auto rate = [&](const char* key, double value) {
    if (value > 0) text += std::string{" "} + key + " " + quantity_text(value, dimension::computing);
  };
  text += "device";
  if (!m.device.name.empty()) text += " name " + m.device.name;
  rate("full", f.full);
  rate("causal", f.causal);
  rate("backward", b.full);
  rate("backward-causal", b.causal);
  text += "\ndevice launch " + quantity_text(f.launch, dimension::time) + " prologue " + number(f.prologue) +
          " columns block " + number(f.block) + " rows units " + number(f.units) + "\ndevice";
  const auto given = [&](const char* key, double value, dimension of) {
    if (value > 0) text += std::string{" "} + key + " " + quantity_text(value, of);
  };
  given("memory", m.device.memory, dimension::bandwidth);
  given("capacity", static_cast<double>(m.device.capacity), dimension::size);
  given("merge", f.merge, dimension::size);
  given("backward-merge", b.merge, dimension::size);
  given("slowed", m.device.slowed, dimension::share);
  std::string member = "device";
  for (const machine::level& l : m.levels) {
    text += "\nlevel " + l.name + " " + std::to_string(l.count) + " " + member + (l.count == 1 ? "" : "s");
    if (!l.link.empty()) text += " " + l.link;
    given("", l.bandwidth, dimension::bandwidth);
    text += " " + quantity_text(l.latency, dimension::time);
    text += l.shared_by.empty() ? " each its own" : " shared by " + l.shared_by;
    if (l.ports != 1) text += " " + std::to_string(l.ports) + " ports";
    if (!l.full_duplex) text += " half duplex";
    member = l.name;
  }
  text += "\nhost call " + quantity_text(m.device.call, dimension::time) + " step " +
          quantity_text(m.device.step, dimension::time) + " message " +
          quantity_text(m.device.message, dimension::time) + "\n";
  for (std::size_t rank = 0; rank < m.speed.size(); ++rank) {
    if (m.speed[rank] != 1)
      text += "rank " + std::to_string(rank) + " speed " + quantity_text(m.speed[rank], dimension::share) + "\n";
  }
  return text;
}

}  // namespace orrery
