// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "orrery/detail/initializer_text.hpp"
#include "orrery/predict/detail/machine_words.hpp"
#include "orrery/predict/detail/quantity.hpp"
#include "orrery/predict/machine.hpp"

namespace orrery::detail {

/// Reads the lists of a network of ASTRA-sim. See `machine_of_astra_network`.
class astra_network {
 public:
  explicit astra_network(std::string_view text) {
    int number = 1;
    for (std::size_t begin = 0; begin <= text.size(); ++number) {
      const std::size_t end = (std::min)(text.find('\n', begin), text.size());
      read_line(text.substr(begin, end - begin), number);
      begin = end + 1;
    }
    for (const list& one : lists_) {
      if (one.line == 0) {
        throw std::invalid_argument{"orrery: machine_of_astra_network: " + std::string{one.key} +
                                    " is missing, expected a line such as \"" + one.key + ": " + one.example + "\""};
      }
      if (one.items.size() != lists_[0].items.size()) {
        refuse(one.line, std::string{one.key} + " has " + std::to_string(one.items.size()) +
                             " dimensions, and topology in line " + std::to_string(lists_[0].line) + " has " +
                             std::to_string(lists_[0].items.size()));
      }
    }
  }

  [[nodiscard]] machine like(const machine& preset) const {
    machine m;
    m.name = "ASTRA-sim network";
    m.device = preset.device;
    for (std::size_t d = 0; d < lists_[0].items.size(); ++d) {
      machine::level l{.name = "dimension" + std::to_string(d + 1), .link = std::string{lists_[0].items[d]}};
      if (l.link != "Ring" && l.link != "FullyConnected" && l.link != "Switch") {
        refuse(lists_[0].line, "topology: " + unknown_name("dimension", l.link, {"Ring", "FullyConnected", "Switch"}));
      }
      const double count = number(1, d, 1, machine_limits::members);
      l.count = static_cast<int>(count);
      if (static_cast<double>(l.count) != count) {
        refuse(lists_[1].line, "npus_count: " + std::string{lists_[1].items[d]} + " is no whole number");
      }
      l.bandwidth = number(2, d, 1e-6, 1e9) * 1e9;
      l.latency = number(3, d, 0, 1e13) * 1e-9;
      m.levels.push_back(l);
    }
    m.check();
    return m;
  }

 private:
  struct list {
    const char* key;
    const char* example;
    int line = 0;  ///< 0: not there
    std::vector<std::string_view> items{};
  };

  [[noreturn]] static void refuse(int line, const std::string& why) {
    throw std::invalid_argument{"orrery: machine_of_astra_network: line " + std::to_string(line) + ": " + why};
  }
  [[nodiscard]] static std::string_view trimmed(std::string_view text) noexcept {
    while (!text.empty() && static_cast<unsigned char>(text.front()) <= ' ') text.remove_prefix(1);
    while (!text.empty() && static_cast<unsigned char>(text.back()) <= ' ') text.remove_suffix(1);
    return text;
  }

  void read_line(std::string_view text, int number) {
    text = trimmed(text.substr(0, text.find('#')));
    if (text.empty() || text == "---") return;
    const std::size_t colon = text.find(':');
    if (colon == text.npos) refuse(number, "\"" + std::string{text} + "\" is no line \"key: [ values ]\"");
    const std::string_view key = trimmed(text.substr(0, colon));
    list* to = nullptr;
    std::vector<std::string> known;
    for (list& one : lists_) {
      known.emplace_back(one.key);
      if (key == one.key) to = &one;
    }
    if (to == nullptr) refuse(number, unknown_name("key of a network", key, known));
    if (to->line != 0) {
      refuse(number, std::string{key} + " is given twice, first in line " + std::to_string(to->line));
    }
    to->line = number;
    std::string_view values = trimmed(text.substr(colon + 1));
    if (values.size() < 2 || values.front() != '[' || values.back() != ']') {
      refuse(number,
             std::string{key} + " is \"" + std::string{values} + "\", expected a list in one line, as " + to->example);
    }
    values = values.substr(1, values.size() - 2);
    while (true) {
      const std::size_t comma = values.find(',');
      to->items.push_back(trimmed(values.substr(0, comma)));
      if (to->items.back().empty()) refuse(number, std::string{key} + " has an empty value");
      if (comma == values.npos) return;
      values.remove_prefix(comma + 1);
    }
  }

  [[nodiscard]] double number(std::size_t of, std::size_t dimension, double least, double most) const {
    const list& values = lists_[of];
    const std::string_view text = values.items[dimension];
    double value = 0;
    if (read_number(text, value) == text.size() && value >= least && value <= most) return value;
    refuse(values.line, std::string{values.key} + ": \"" + std::string{text} + "\" of dimension " +
                            std::to_string(dimension + 1) + ", expected a number from " +
                            initializer_text::code_of(least) + " to " + initializer_text::code_of(most));
  }

  std::array<list, 4> lists_{list{"topology", "[ Ring, Switch ]"}, list{"npus_count", "[ 8, 4 ]"},
                             list{"bandwidth", "[ 400.0, 50.0 ]"}, list{"latency", "[ 900.0, 2000.0 ]"}};
};

}  // namespace orrery::detail

namespace orrery {

/// The machine of a network that ASTRA-sim's analytical backend reads, a level for each dimension:
///
///     topology: [ Switch, Switch ]
///     npus_count: [ 8, 4 ]
///     bandwidth: [ 400.0, 50.0 ]    # GB/s
///     latency: [ 936.25, 2000.0 ]   # ns
///
/// What that text does not say, a device's kernels and memory, is that of `like`: machine_named("h100"). GB are 10^9
/// bytes; ASTRA-sim's older versions count 2^30, which is 7 % more.
///
/// A level's bandwidth is that of one link. A Switch has one for each device; a Ring has two, and FullyConnected one to
/// each other device, which a device here shares among what it sends at a time: such schedules are predicted slower.
///
/// Throws `std::invalid_argument` with line and key for what cannot be read: other keys, lists of different lengths or
/// over several lines, numbers that cannot be.
[[nodiscard]] inline machine machine_of_astra_network(std::string_view yml, const machine& like) {
  return detail::astra_network{yml}.like(like);
}

}  // namespace orrery
