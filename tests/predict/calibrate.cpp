// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// From samples to constants: exact samples give the machine that made them, noisy ones nearly so with a residual that
// says how nearly, contradictory ones are refused.
#include "orrery/predict/calibrate.hpp"

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/predict/machine_text.hpp"

#include "support/refusal.hpp"

namespace calibrate_test {

using orrery::calibrate;
using orrery::calibration;
using orrery::calibration_samples;
using orrery::machine;
using orrery::pass;
using orrery::tile_work;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Within this part of what is expected.
bool is_about(double value, double expected, double tolerance) {
  return std::fabs(value - expected) <= tolerance * std::fabs(expected);
}

/// Two nodes of four; a card for each node, whose two directions share its rate.
machine truth() {
  machine m = orrery::read_machine(R"(
machine truth
device  full 90 GFLOP/s  causal 80 GFLOP/s  backward 70 GFLOP/s  backward-causal 60 GFLOP/s
device  launch 3 us  prologue 24 columns  block 48 rows  units 2  memory 9 GB/s  merge 20 B  slowed 40 %
level   node     4 devices   6 GB/s    2 us  each its own
level   cluster  2 nodes     1.5 GB/s  30 us  shared by node  half duplex
host    call 50 us  step 4 us  message 700 ns
)");
  return m;
}

machine frame() {
  machine m = truth();
  m.name = "here";
  const double units = m.device.forward.units;
  m.device = {};
  m.device.forward.units = units;
  for (machine::level& one : m.levels) one.bandwidth = one.latency = 0;
  m.levels[1].shared_by.clear();
  m.levels[1].full_duplex = true;
  return m;
}

tile_work work(pass p, std::int64_t rows, std::int64_t keys, bool causal, std::int64_t heads = 4) {
  tile_work w;
  w.pass = p;
  w.rows = rows;
  w.longest_row = keys;
  w.pairs = causal ? rows * (rows + 1) / 2 : rows * keys;
  w.diagonal_rows = causal ? rows - 1 : 0;
  w.query_heads = w.key_heads = heads;
  w.head_dim = w.value_dim = 64;
  return w;
}

/// What a measurement of the true machine would give, each time times `noise()`.
template <class Noise>
calibration_samples samples_of(const machine& m, const Noise& noise) {
  calibration_samples s;
  const auto tile = [&](pass p, std::int64_t rows, std::int64_t keys, bool causal, std::int64_t heads = 4) {
    const tile_work w = work(p, rows, keys, causal, heads);
    s.tiles.push_back(
        {w, tile_seconds(w, m.device.rates(p)) * noise(), std::to_string(rows) + " x " + std::to_string(keys)});
  };
  for (const std::int64_t n : {128, 512, 2048}) tile(pass::forward, n, n, false);
  for (const std::int64_t n : {512, 2048}) tile(pass::forward, n, n, true);
  tile(pass::forward, 64, 4096, false);
  tile(pass::forward, 4096, 64, false);
  tile(pass::forward, 64, 4096, false, 1);
  tile(pass::forward, 8, 8, false, 1);
  for (const bool causal : {false, true}) tile(pass::circulate_keys, 2048, 2048, causal);
  for (int level = 0; level < 2; ++level) {
    const machine::level& l = m.levels[static_cast<std::size_t>(level)];
    for (const std::int64_t bytes : {8, 65536, 1 << 20, 1 << 24}) {
      for (const int posted : {1, 8}) {
        for (const bool both : {false, true}) {
          for (const int senders : {1, 4}) {
            if (level == 0 && senders > 1) continue;
            const double sharers =
                (l.full_duplex || !both ? 1.0 : 2.0) * (l.shared_by.empty() ? 1.0 : static_cast<double>(senders));
            const double seconds =
                posted * m.device.message + l.latency + sharers * posted * static_cast<double>(bytes) / l.bandwidth;
            s.messages.push_back(
                {level, bytes, seconds * noise(), posted, senders, both, std::to_string(bytes) + " B"});
          }
        }
      }
    }
  }
  for (const double bytes : {1e6, 3e7}) s.copies.push_back({bytes, bytes / m.device.memory * noise(), "copy"});
  const tile_work accumulated = work(pass::forward, 512, 512, false);
  const double begun = tile_seconds(accumulated, m.device.forward) * noise();
  s.accumulated.push_back({accumulated, begun, begun + 20 * 512.0 * 4 * 64 / m.device.memory, "512 x 512"});
  s.hidden.push_back({1e-2, 8e-3, (1e-2 + 0.4 * 8e-3) * noise(), "behind a tile"});
  const tile_work tiny = work(pass::forward, 1, 1, false, 1);
  for (const int steps : {2, 16, 128}) {
    const double each = tile_seconds(tiny, m.device.forward);
    const double arrival = m.levels[0].latency + 512 / m.levels[0].bandwidth;
    const int messages = steps / 2;
    const double seconds = m.device.call + steps * m.device.step +
                           messages * (m.device.message + (each > arrival ? each : arrival)) +
                           (steps - messages) * each;
    s.calls.push_back({steps, messages, 512, tiny, seconds * noise(), std::to_string(steps) + " steps"});
  }
  return s;
}

const calibration::constant* named(const calibration& c, const std::string& name) {
  for (const calibration::constant& one : c.constants) {
    if (one.name == name) return &one;
  }
  return nullptr;
}

void check_near(const machine& found, const machine& expected, double tolerance) {
  const auto about = [&](const char* what, double value, double right) {
    INFO(what, " is ", value, ", expected ", right);
    CHECK(is_about(value, right, tolerance));
  };
  about("full", found.device.forward.full, expected.device.forward.full);
  about("causal", found.device.forward.causal, expected.device.forward.causal);
  about("launch", found.device.forward.launch, expected.device.forward.launch);
  about("prologue", found.device.forward.prologue, expected.device.forward.prologue);
  about("block", found.device.forward.block, expected.device.forward.block);
  about("backward", found.device.backward.full, expected.device.backward.full);
  about("backward-causal", found.device.backward.causal, expected.device.backward.causal);
  about("memory", found.device.memory, expected.device.memory);
  about("merge", found.device.forward.merge, expected.device.forward.merge);
  about("slowed", found.device.slowed, expected.device.slowed);
  about("call", found.device.call, expected.device.call);
  about("step", found.device.step, expected.device.step);
  about("message", found.device.message, expected.device.message);
  for (std::size_t l = 0; l < 2; ++l) {
    about("bandwidth", found.levels[l].bandwidth, expected.levels[l].bandwidth);
    about("latency", found.levels[l].latency, expected.levels[l].latency);
    CHECK(found.levels[l].full_duplex == expected.levels[l].full_duplex);
    CHECK(found.levels[l].shared_by == expected.levels[l].shared_by);
  }
}

const auto no_noise = [] { return 1.0; };

TEST_CASE("exact samples give the machine that they were made from") {
  const calibration found = calibrate(samples_of(truth(), no_noise), frame());
  CHECK(found.refusals().empty());
  CHECK(found.is_usable());
  check_near(found.described, truth(), 2e-3);  // constants have four digits
  CHECK(found.described.name == "here");
  CHECK(found.described.device.forward.units == 2);
  for (const calibration::constant& one : found.constants) {
    CAPTURE(one.name);
    CHECK(one.residual < 1e-3);
    CHECK(one.samples > 0);
  }
  for (const char* needed : {"full", "backward", "level node bandwidth", "level cluster bandwidth"}) {
    REQUIRE(named(found, needed) != nullptr);
    CHECK(named(found, needed)->is_needed);
  }
}

TEST_CASE("the text of a calibration is a machine with a comment for each constant") {
  const calibration found = calibrate(samples_of(truth(), no_noise), frame());
  const std::string text = to_string(found);
  CHECK(orrery::read_machine(text) == found.described);
  for (const calibration::constant& one : found.constants) CHECK(contains(text, "# " + one.name));
  CHECK(contains(text, "residual 0.0 % over"));
  CHECK(contains(text, "# full                     90 GFLOP/s  residual 0.0 % over "));
  CHECK(contains(text, "# level cluster latency    30 us  residual "));
}

TEST_CASE("noisy samples give nearly the machine, and residuals as large as the noise") {
  std::mt19937_64 random{7};
  const auto noise = [&] { return 1 + 0.04 * (static_cast<double>(random() >> 11) / 4503599627370496.0 - 1); };
  const calibration found = calibrate(samples_of(truth(), noise), frame());
  CHECK(found.refusals().empty());
  CHECK(is_about(found.described.device.forward.full, truth().device.forward.full, 0.06));
  CHECK(is_about(found.described.levels[0].bandwidth, 6e9, 0.05));
  CHECK(is_about(found.described.levels[1].bandwidth, 1.5e9, 0.05));
  CHECK(found.described.levels[1].shared_by == "node");
  CHECK(!found.described.levels[1].full_duplex);
  const calibration::constant* const bandwidth = named(found, "level cluster bandwidth");
  REQUIRE(bandwidth != nullptr);
  CHECK(bandwidth->residual > 0.005);
  CHECK(bandwidth->residual < 0.05);
}

TEST_CASE("a link is judged by messages of all ranks in both directions, whatever fewer of them take") {
  // Both directions at once take 1.3 times as long as one, as where two ranks copy in one memory: neither the one
  // assumption nor the other.
  calibration_samples s = samples_of(truth(), no_noise);
  for (auto& one : s.messages) {
    if (one.level == 0 && one.both_ways) one.seconds += 0.3 * one.posted * static_cast<double>(one.bytes) / 6e9;
  }
  const calibration found = calibrate(s, frame());
  CHECK(found.refusals().empty());
  CHECK(found.described.levels[0].full_duplex);
  CHECK(is_about(found.described.levels[0].bandwidth, 6e9 / 1.3, 2e-3));
  CHECK(is_about(found.described.levels[0].latency, 2e-6, 2e-3));
}

TEST_CASE("a constant whose samples contradict each other is refused, and the others are not") {
  calibration_samples s = samples_of(truth(), no_noise);
  s.copies[0].seconds *= 3;
  s.copies[0].what = "copy of 1 MB";
  const calibration found = calibrate(s, frame());
  const calibration::constant* const memory = named(found, "memory");
  REQUIRE(memory != nullptr);
  CHECK(memory->residual > 0.15);
  CHECK(contains(memory->refusal, "memory: its 2 samples differ from the fit by "));
  CHECK(contains(memory->refusal, "copy of 1 MB took "));
  CHECK(contains(memory->refusal, "measure again with nothing else running"));
  CHECK(found.described.device.memory == 0);
  CHECK(found.is_usable());
  CHECK(named(found, "full")->refusal.empty());
  CHECK(contains(to_string(found), "# refused: memory: "));
  CHECK(orrery::read_machine(to_string(found)) == found.described);
  // A larger limit takes it.
  CHECK(calibrate(s, frame(), 2).refusals().empty());
}

TEST_CASE("without a rate or a bandwidth there is no machine") {
  calibration_samples s = samples_of(truth(), no_noise);
  for (std::size_t i = 0; i < s.tiles.size(); i += 2) s.tiles[i].seconds *= 4;
  const calibration found = calibrate(s, frame());
  CHECK(!found.is_usable());
  CHECK(contains(found.refusals(), "full: its "));
  CHECK(contains(refusal_of([&] { (void)to_string(found); }), "no machine can be written; "));

  calibration_samples flat = samples_of(truth(), no_noise);
  for (auto& one : flat.messages) one.seconds = one.posted * 1e-6 + 1e-5;
  const calibration without = calibrate(flat, frame());
  CHECK(!without.is_usable());
  CHECK(contains(without.refusals(), "level node bandwidth: the samples do not grow with it; measure larger sizes"));
}

TEST_CASE("where nodes have one device each, calls wait for the network") {
  machine truth_of_two = orrery::read_machine(
      "machine two\ndevice full 90 GFLOP/s units 1 prologue 0 columns block 0 rows\nlevel node 1 device\nlevel cluster "
      "2 nodes 2 GB/s 10 us\n"
      "host call 5 us step 2 us\n");
  calibration_samples s;
  for (const std::int64_t n : {128, 512, 2048}) {
    const tile_work w = work(pass::forward, n, n, false);
    s.tiles.push_back({w, tile_seconds(w, truth_of_two.device.forward), "tile"});
  }
  for (const std::int64_t bytes : {8, 1 << 16, 1 << 20}) {
    s.messages.push_back({1, bytes, 10e-6 + static_cast<double>(bytes) / 2e9, 1, 1, true, "message"});
  }
  const tile_work tiny = work(pass::forward, 1, 1, false, 1);
  for (const int steps : {2, 16}) {
    const double tile = tile_seconds(tiny, truth_of_two.device.forward);
    const double arrival = 10e-6 + 512 / 2e9;
    s.calls.push_back({steps, steps / 2, 512, tiny, 5e-6 + steps * 2e-6 + steps / 2 * (arrival + tile), "call"});
  }
  machine of_two = truth_of_two;
  of_two.device = {};
  of_two.levels[1].bandwidth = of_two.levels[1].latency = 0;
  const calibration found = calibrate(s, of_two);
  CHECK(found.refusals().empty());
  CHECK(is_about(found.described.levels[1].latency, 10e-6, 1e-3));
  CHECK(is_about(found.described.device.call, 5e-6, 2e-2));
  CHECK(is_about(found.described.device.step, 2e-6, 2e-2));
}

TEST_CASE("samples that cannot be are refused with their name and number") {
  const auto refused = [](const auto& change) {
    calibration_samples s = samples_of(truth(), no_noise);
    change(s);
    return refusal_of([&] { (void)calibrate(s, frame()); });
  };
  CHECK(contains(refused([](auto& s) { s.tiles[0].seconds = 0; }), "tiles \"128 x 128\": seconds is 0, expected more"));
  CHECK(contains(refused([](auto& s) { s.messages[0].seconds = -1; }), "messages \"8 B\": seconds is -1"));
  CHECK(contains(refused([](auto& s) { s.copies[0].seconds = std::nan(""); }), "copies \"copy\": seconds is nan"));
  CHECK(contains(refused([](auto& s) { s.calls[0].seconds = 1e9; }), "calls \"2 steps\": seconds is 1e+09"));
  CHECK(contains(refused([](auto& s) { s.messages[0].level = 2; }), "level is 2, but the machine has 2 levels"));
  CHECK(contains(refused([](auto& s) { s.messages[0].posted = 0; }), "posted is 0"));
  CHECK(contains(refused([](auto& s) { s.hidden[0].tile_seconds = 0; }), "hidden \"behind a tile\""));
  CHECK(
      contains(refused([](auto& s) { s.tiles.clear(); }), "there is no forward tile of which the mask hides nothing"));
  CHECK(contains(refusal_of([] { (void)calibrate(samples_of(truth(), no_noise), frame(), 0); }), "limit is 0"));
}

}  // namespace calibrate_test
