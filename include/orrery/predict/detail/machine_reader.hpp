// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "orrery/predict/detail/machine_presets.hpp"
#include "orrery/predict/detail/machine_words.hpp"
#include "orrery/predict/detail/quantity.hpp"
#include "orrery/predict/machine.hpp"

namespace orrery::detail {

/// Reads machines. See `read_machine`.
class machine_reader {
 public:
  explicit machine_reader(std::string_view text) : words_{text} {}

  /// The machine of this name; with an empty one, the first of the text.
  [[nodiscard]] machine read(std::string_view name) const {
    if (words_.sections.empty()) {
      throw std::invalid_argument{
          "orrery: read_machine: the text describes no machine; begin with a line \"machine NAME\""};
    }
    sections chain;
    if (name.empty()) return of_section(words_.sections.front(), chain);
    for (const machine_words::section& one : words_.sections) {
      if (one.name == name) return of_section(one, chain);
    }
    throw std::invalid_argument{"orrery: read_machine: " + unknown_name("machine", name, names())};
  }
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const machine_words::section& one : words_.sections) all.push_back(one.name);
    return all;
  }

  /// The presets.
  [[nodiscard]] static const machine_reader& presets() {
    static const machine_reader all{machine_presets};
    return all;
  }

 private:
  using line = machine_words::line;
  using sections = std::vector<const machine_words::section*>;
  using limits = machine_limits;
  static constexpr double positive = 1e-300;

  /// The machine of a section. `chain` holds those that are like it, and does not own them.
  [[nodiscard]] machine of_section(const machine_words::section& s, sections& chain) const {
    chain.push_back(&s);
    machine m;
    std::vector<std::string> given;  // levels and facts, to refuse a second one
    for (const line& words : s.lines) {
      fact_reader facts{words};
      const std::string_view key = words[0].text;
      if (key == "like") {
        if (&words != &s.lines.front()) {
          words[0].refuse("like must be the first line of its machine: what follows overrides it");
        }
        const std::string name = machine_words::name_of(words);
        m = machine_like(words[1], name, chain);
      } else if (key == "device") {
        read_device(facts, m.device, given, chain);
      } else if (key == "level") {
        read_level(facts, m.levels, given);
      } else if (key == "host") {
        read_host(facts, m.device, given);
      } else if (key == "rank") {
        read_rank(facts, m.speed);
      } else {
        words[0].refuse(unknown_name("fact of a machine", key, {"machine", "like", "device", "level", "host", "rank"}));
      }
    }
    chain.pop_back();
    m.name = s.name;
    if (!chain.empty()) return m;
    try {
      m.check();
    } catch (const std::invalid_argument& e) {
      const std::string message = e.what();
      throw std::invalid_argument{"orrery: read_machine: the machine of line " + std::to_string(s.line) + ": " +
                                  message.substr(message.find("machine: ") + 9)};
    }
    return m;
  }

  /// The machine of this name in the text, or else a preset.
  [[nodiscard]] machine machine_like(const machine_word& at, const std::string& name, sections& chain) const {
    constexpr std::size_t most_nested = 64;
    for (const machine_words::section& one : words_.sections) {
      if (one.name != name) continue;
      for (const machine_words::section* user : chain) {
        if (user != &one) continue;
        at.refuse("machine \"" + name + "\" is like itself" +
                  (chain.back() == &one ? "" : ", by way of \"" + chain.back()->name + "\"") +
                  "; let one be like a preset, or say what it is");
      }
      if (chain.size() == most_nested) at.refuse("more than 64 machines are like each other");
      return of_section(one, chain);
    }
    std::vector<std::string> known = names();
    if (this != &presets()) {
      for (const std::string& preset : presets().names()) {
        if (preset == name) return presets().read(name);
        known.push_back(preset);
      }
    }
    at.refuse(unknown_name("machine or preset", name, known));
  }

  static void once(const machine_word& at, const std::string& fact, std::vector<std::string>& given) {
    for (const std::string& one : given) {
      if (one == fact) at.refuse(fact + " is given twice");
    }
    given.push_back(fact);
  }

  void read_device(fact_reader& facts, machine::processor& d, std::vector<std::string>& given, sections& chain) const {
    while (!facts.at_end()) {
      const bool is_first = facts.at_first_fact();
      const machine_word key = facts.take("a fact");
      const std::string fact{key.text};
      const bool is_first_of_all = is_first && !has_device_facts(given);
      once(key, "device " + fact, given);
      if (fact == "like") {
        if (!is_first_of_all) key.refuse("like must be the first fact of a device: what follows overrides it");
        const machine_word name = facts.take("the name of a machine");
        d = machine_like(name, std::string{name.text}, chain).device;
      } else if (fact == "name") {
        d.name = facts.take("a name").text;
      } else if (!read_rate(facts, fact, d) && !read_device_number(facts, fact, d)) {
        key.refuse(unknown_name("fact of a device", fact,
                                {"like", "name", "full", "causal", "backward", "backward-causal", "launch", "prologue",
                                 "block", "units", "merge", "backward-merge", "memory", "capacity", "slowed"}));
      }
    }
  }
  [[nodiscard]] static bool has_device_facts(const std::vector<std::string>& given) {
    for (const std::string& one : given) {
      if (one.compare(0, 7, "device ") == 0) return true;
    }
    return false;
  }
  /// Returns false if the fact is no rate. Likewise the next one.
  static bool read_rate(fact_reader& facts, const std::string& fact, machine::processor& d) {
    double* const to = fact == "full"              ? &d.forward.full
                       : fact == "causal"          ? &d.forward.causal
                       : fact == "backward"        ? &d.backward.full
                       : fact == "backward-causal" ? &d.backward.causal
                                                   : nullptr;
    if (to == nullptr) return false;
    *to = facts.take_quantity(fact, dimension::computing, positive, limits::flop_per_second);
    return true;
  }
  static bool read_device_number(fact_reader& facts, const std::string& fact, machine::processor& d) {
    if (fact == "launch") {
      d.forward.launch = d.backward.launch = facts.take_quantity(fact, dimension::time, 0, limits::seconds);
    } else if (fact == "prologue") {
      d.forward.prologue = d.backward.prologue = facts.take_count(fact, 0, limits::number, "columns");
    } else if (fact == "block") {
      d.forward.block = d.backward.block = facts.take_count(fact, 0, limits::number, "rows");
    } else if (fact == "units") {
      d.forward.units = d.backward.units = facts.take_count(fact, 1, limits::number);
    } else if (fact == "merge") {
      d.forward.merge = facts.take_quantity(fact, dimension::size, 0, limits::number);
    } else if (fact == "backward-merge") {
      d.backward.merge = facts.take_quantity(fact, dimension::size, 0, limits::number);
    } else if (fact == "memory") {
      d.memory = facts.take_quantity(fact, dimension::bandwidth, positive, limits::bytes_per_second);
    } else if (fact == "capacity") {
      d.capacity = static_cast<std::int64_t>(facts.take_quantity(fact, dimension::size, 1, limits::bytes));
    } else if (fact == "slowed") {
      d.slowed = facts.take_quantity(fact, dimension::share, 0, 1);
    } else {
      return false;
    }
    return true;
  }

  static void read_host(fact_reader& facts, machine::processor& d, std::vector<std::string>& given) {
    while (!facts.at_end()) {
      const machine_word key = facts.take("a fact");
      const std::string fact{key.text};
      once(key, "host " + fact, given);
      double* const to = fact == "call" ? &d.call : fact == "step" ? &d.step : fact == "message" ? &d.message : nullptr;
      if (to == nullptr) key.refuse(unknown_name("fact of a host", fact, {"call", "step", "message"}));
      *to = facts.take_quantity(fact, dimension::time, 0, limits::seconds);
    }
  }

  /// rank 3 speed 90 %; rank 8-15 speed 90 %
  static void read_rank(fact_reader& facts, std::vector<double>& speed) {
    const machine_word which = facts.take("the number of a rank, as 3 or 8-15,");
    const auto dash = which.text.find('-');
    int ends[2] = {0, 0};
    for (const int i : {0, 1}) {
      const std::string_view digits = dash == which.text.npos ? which.text
                                      : i == 0                ? which.text.substr(0, dash)
                                                              : which.text.substr(dash + 1);
      const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), ends[i]);
      if (error != std::errc{} || end != digits.data() + digits.size() || ends[i] < 0 || ends[i] >= limits::members) {
        which.refuse("\"" + std::string{which.text} + "\" is no rank, expected a number from 0 to " +
                     std::to_string(limits::members - 1) + ", or two as in 8-15");
      }
    }
    if (ends[1] < ends[0]) which.refuse("the ranks " + std::string{which.text} + " do not ascend");
    facts.take_word("speed", "speed");
    const double value = facts.take_quantity("speed", dimension::share, 1e-6, 1e6);
    if (!facts.at_end()) facts.peek().refuse("\"" + std::string{facts.text()} + "\" is too much in this line");
    if (speed.size() <= static_cast<std::size_t>(ends[1])) speed.resize(static_cast<std::size_t>(ends[1]) + 1, 1.0);
    for (int rank = ends[0]; rank <= ends[1]; ++rank) speed[static_cast<std::size_t>(rank)] = value;
  }

  /// level NAME 8 devices LINK 365 GB/s 12 us each its own | shared by LEVEL, 2 ports, half duplex
  static void read_level(fact_reader& facts, std::vector<machine::level>& levels, std::vector<std::string>& given) {
    const machine_word name = facts.take("the name of a level");
    if (is_number(name)) {
      name.refuse("\"" + std::string{name.text} + "\" is no name of a level; write level node 8 devices");
    }
    once(name, "level " + std::string{name.text}, given);
    std::size_t index = 0;
    while (index < levels.size() && levels[index].name != name.text) ++index;
    bool counted = index < levels.size();
    if (!counted) levels.push_back({.name = std::string{name.text}});
    machine::level& l = levels[index];
    const std::string member = index == 0 ? "device" : levels[index - 1].name;
    bool linked = false;
    while (!facts.at_end()) {
      if (is_number(facts.peek())) {
        read_level_number(facts, l, member, counted, given);
        continue;
      }
      const machine_word word = facts.take("a fact");
      if (word.text == "each" || word.text == "shared")
        once(word, "whose links those of level " + l.name + " are", given);
      if (word.text == "half" || word.text == "full") once(word, "duplex of level " + l.name, given);
      if (word.text == "each") {
        facts.take_word("its", "each its own");
        facts.take_word("own", "each its own");
        l.shared_by.clear();
      } else if (word.text == "shared") {
        facts.take_word("by", "shared by LEVEL");
        const machine_word by = facts.take("the name of a level");
        std::vector<std::string> known;
        for (std::size_t i = 0; i <= index; ++i) known.push_back(levels[i].name);
        bool found = false;
        for (const std::string& one : known) found = found || one == by.text;
        if (!found) by.refuse(unknown_name("level that is this one or below it", by.text, known));
        l.shared_by = by.text;
      } else if (word.text == "half" || word.text == "full") {
        facts.take_word("duplex", "half duplex or full duplex");
        l.full_duplex = word.text == "full";
      } else if (linked || !(is_letter(word.text[0]) || is_ethernet(word.text))) {
        word.refuse(unknown_name("fact of a level", word.text,
                                 {"each its own", "shared by LEVEL", "half duplex", "full duplex", "2 ports"}) +
                    (linked ? "; its link is called " + l.link + " already" : ""));
      } else {
        linked = true;
        l.link = word.text;
      }
    }
    if (!counted) {
      name.refuse("level " + l.name + " does not say how many " + member + "s it has, as in 8 " + member + "s");
    }
    if (l.count > 1 && l.bandwidth == 0) {
      name.refuse("level " + l.name + " of " + std::to_string(l.count) + " " + member +
                  "s does not say its bandwidth, as in 365 GB/s");
    }
  }
  /// 100GbE is the name of a link.
  [[nodiscard]] static bool is_number(const machine_word& word) {
    double ignored = 0;
    return read_number(word.text, ignored) > 0 && !is_ethernet(word.text);
  }
  [[nodiscard]] static bool is_ethernet(std::string_view text) noexcept {
    return text.size() > 3 && text.substr(text.size() - 3) == "GbE";
  }
  [[nodiscard]] static bool is_letter(char c) noexcept { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }

  static void read_level_number(fact_reader& facts, machine::level& l, const std::string& member, bool& counted,
                                std::vector<std::string>& given) {
    const fact_reader::number n = facts.take_number("a bandwidth, a latency or a count");
    const std::string_view what = n.unit.text;
    const unit* const in = unit_named(what);
    if (in != nullptr && in->of == dimension::time) {
      once(n.unit, "latency of level " + l.name, given);
      l.latency = fact_reader::quantity(n, "latency", dimension::time, 0, limits::seconds);
    } else if (what == "port" || what == "ports") {
      once(n.unit, "ports of level " + l.name, given);
      l.ports = fact_reader::whole(n, "the number of ports", limits::members);
    } else if (what == member || what == member + "s") {
      once(n.unit, member + "s of level " + l.name, given);
      l.count = fact_reader::whole(n, "the number of " + member + "s", limits::members);
      counted = true;
    } else if (in == nullptr && !counted && what.size() > 2 && what.find('/') == what.npos && is_letter(what[0])) {
      n.unit.refuse(unknown_name("member of level " + l.name, what, {member + "s"}));
    } else {
      once(n.unit, "bandwidth of level " + l.name, given);
      l.bandwidth = fact_reader::quantity(n, "bandwidth", dimension::bandwidth, positive, limits::bytes_per_second);
    }
  }

  machine_words words_;
};

}  // namespace orrery::detail
