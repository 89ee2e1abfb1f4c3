// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "orrery/detail/initializer_text.hpp"
#include "orrery/predict/detail/quantity.hpp"
#include "orrery/schedule/detail/names.hpp"

namespace orrery::detail {

/// "\"hh00\" is no machine; did you mean h100? There are a100, h100".
[[nodiscard]] inline std::string unknown_name(const std::string& what, std::string_view name,
                                              const std::vector<std::string>& known) {
  std::string all;
  const std::string* nearest = nullptr;
  std::size_t least = 0;
  for (const std::string& one : known) {
    all += (all.empty() ? "" : ", ") + one;
    const std::size_t distance = edit_distance(name.substr(0, 64), one);
    if (nearest != nullptr && distance >= least) continue;
    nearest = &one;
    least = distance;
  }
  const bool close = nearest != nullptr && 2 * least <= nearest->size();
  return "\"" + std::string{name} + "\" is no " + what + "; " +
         (close ? "did you mean " + *nearest + "? There are " : std::string{"there are "}) + all;
}

/// A word of a machine's text, and where it is. Lines and columns count from 1.
struct machine_word {
  std::string_view text;
  int line = 0;
  int column = 0;

  /// The column behind it.
  [[nodiscard]] int end() const noexcept { return column + static_cast<int>(text.size()); }
  /// Throws `std::invalid_argument` with the place.
  [[noreturn]] void refuse(const std::string& why) const {
    throw std::invalid_argument{"orrery: read_machine: line " + std::to_string(line) + ", column " +
                                std::to_string(column) + ": " + why};
  }
};

/// The text of machines as words: lines that say something, grouped by the machine that they describe.
class machine_words {
 public:
  using line = std::vector<machine_word>;
  struct section {
    std::string name;
    int line = 0;
    std::vector<machine_words::line> lines;  ///< without the one that gives the name
  };

  explicit machine_words(std::string_view text) {
    int number = 1;
    for (std::size_t begin = 0; begin <= text.size(); ++number) {
      std::size_t end = text.find('\n', begin);
      if (end == text.npos) end = text.size();
      const line words = words_of(text.substr(begin, end - begin), number);
      begin = end + 1;
      if (words.empty()) continue;
      if (words[0].text == "machine") {
        begin_section(words);
      } else if (sections.empty()) {
        words[0].refuse("\"" + std::string{words[0].text} +
                        "\" stands before the first machine; begin with a line \"machine NAME\"");
      } else {
        sections.back().lines.push_back(words);
      }
    }
  }

  /// The rest of a line after its first word, with single spaces.
  [[nodiscard]] static std::string name_of(const line& words) {
    std::string name;
    for (std::size_t i = 1; i < words.size(); ++i) name += (i > 1 ? " " : "") + std::string{words[i].text};
    if (name.empty()) words[0].refuse(std::string{words[0].text} + " lacks a name");
    return name;
  }

  std::vector<section> sections;

 private:
  void begin_section(const line& words) {
    const std::string name = name_of(words);
    for (const section& earlier : sections) {
      if (earlier.name == name) {
        words[0].refuse("a machine \"" + name + "\" stands in line " + std::to_string(earlier.line) +
                        " already; give it another name");
      }
    }
    sections.push_back({name, words[0].line, {}});
  }

  /// Without what follows a '#'.
  [[nodiscard]] static line words_of(std::string_view text, int number) {
    line words;
    const auto is_space = [&](std::size_t at) { return static_cast<unsigned char>(text[at]) <= ' '; };
    for (std::size_t i = 0; i < text.size() && text[i] != '#';) {
      if (is_space(i)) {
        ++i;
        continue;
      }
      const std::size_t first = i;
      while (i < text.size() && !is_space(i) && text[i] != '#') ++i;
      words.push_back({text.substr(first, i - first), number, static_cast<int>(first) + 1});
    }
    return words;
  }
};

/// Reads the facts of a line, word by word. What it reads wrong it refuses with its place.
class fact_reader {
 public:
  /// A number, and the word behind it: its unit, or what it counts. `unit` is empty if there is none.
  struct number {
    machine_word at;
    double value = 0;
    machine_word unit;

    /// True if the unit is written right behind it, as in 12us.
    [[nodiscard]] bool is_attached() const noexcept { return !unit.text.empty() && unit.column < at.end(); }
  };

  explicit fact_reader(const machine_words::line& words) : words_{&words} {}

  [[nodiscard]] bool at_end() const noexcept { return next_ == words_->size(); }
  /// True if no fact has been read yet.
  [[nodiscard]] bool at_first_fact() const noexcept { return next_ == 1; }
  /// The next word; empty at the end.
  [[nodiscard]] std::string_view text() const noexcept { return at_end() ? std::string_view{} : peek().text; }
  [[nodiscard]] const machine_word& peek() const noexcept { return (*words_)[next_]; }
  void skip() noexcept { ++next_; }

  /// Takes the next word, which must be there.
  machine_word take(const std::string& expected) {
    if (!at_end()) return (*words_)[next_++];
    machine_word end = words_->back();
    end.column = end.end();
    end.refuse("the line ends where " + expected + " was expected");
  }
  /// Takes a word that must be this one.
  void take_word(const char* word, const std::string& expected) {
    const machine_word next = take(expected);
    if (next.text != word) next.refuse("\"" + std::string{next.text} + "\" stands where " + expected + " was expected");
  }

  /// Takes a number with its unit.
  [[nodiscard]] number take_number(const std::string& of) {
    number n;
    n.at = take("a number, " + of + ",");
    const std::size_t digits = read_number(n.at.text, n.value);
    if (digits == 0) n.at.refuse("\"" + std::string{n.at.text} + "\" is no number, expected " + of);
    if (digits < n.at.text.size()) {
      n.unit = n.at;
      n.unit.text.remove_prefix(digits);
      n.unit.column += static_cast<int>(digits);
    } else if (!at_end()) {
      n.unit = (*words_)[next_++];
    }
    return n;
  }
  /// Gives a word behind a number back that was none of its own.
  void give_back(const number& n) noexcept {
    if (!n.unit.text.empty() && !n.is_attached()) --next_;
  }

  /// Takes a number of this dimension, in base units.
  [[nodiscard]] double take_quantity(const std::string& of, dimension expected, double least, double most) {
    const number n = take_number(of);
    return quantity(n, of, expected, least, most);
  }
  [[nodiscard]] static double quantity(const number& n, const std::string& of, dimension expected, double least,
                                       double most) {
    const unit* const in = unit_named(n.unit.text);
    if (in == nullptr || in->of != expected) refuse_unit(n, of, expected);
    const double value = n.value * in->factor;
    if (value >= least && value <= most) return value;
    n.at.refuse(of + " is " + std::string{n.at.text} + (n.is_attached() ? "" : " " + std::string{n.unit.text}) +
                ", expected " + (least > 0 ? "more than 0" : "at least 0") + " and at most " +
                quantity_text(most, expected));
  }

  /// Takes a number that has no unit, as of units and rows; then `noun`, if that is the next word.
  [[nodiscard]] double take_count(const std::string& of, double least, double most, std::string_view noun = {}) {
    const number n = take_number(of);
    if (n.is_attached()) n.at.refuse("\"" + std::string{n.at.text} + "\" is no number, expected " + of);
    if (noun.empty() || n.unit.text != noun) give_back(n);
    if (n.value >= least && n.value <= most) return n.value;
    n.at.refuse(of + " is " + std::string{n.at.text} + ", expected " + initializer_text::code_of(least) + " to " +
                initializer_text::code_of(most));
  }
  /// The number as a count of members or ports.
  [[nodiscard]] static int whole(const number& n, const std::string& of, int most) {
    if (!(n.value >= 1 && n.value <= most)) {
      n.at.refuse(of + " is " + std::string{n.at.text} + ", expected 1 to " + std::to_string(most));
    }
    const int count = static_cast<int>(n.value);
    if (static_cast<double>(count) != n.value) {
      n.at.refuse(of + " is " + std::string{n.at.text} + ", expected a whole number");
    }
    return count;
  }

 private:
  [[noreturn]] static void refuse_unit(const number& n, const std::string& of, dimension expected) {
    const std::string_view name = n.unit.text;
    const std::string known = unit_names(expected);
    double ignored = 0;
    if (name.empty() || read_number(name, ignored) > 0) {
      n.at.refuse(std::string{n.at.text} + " has no unit; " + of + " is given in " + known);
    }
    for (const char* ambiguous : {"Gb", "Mb", "Kb", "kb", "Tb"}) {
      if (name.substr(0, 2) != ambiguous || (name.size() > 2 && name[2] != '/' && name[2] != 'p')) continue;
      const std::string prefix = name[0] == 'K' ? "k" : std::string{name.substr(0, 1)};
      n.unit.refuse("\"" + std::string{name} + "\" is read as bits by some and as bytes by others; write " + prefix +
                    "bit/s or " + (prefix == "k" ? "K" : prefix) + "B/s");
    }
    if (unit_named(name) != nullptr) {
      n.unit.refuse(std::string{name} + " is the unit of something else; " + of + " is given in " + known);
    }
    std::vector<std::string> all;
    for (const unit& one : every_unit) {
      if (one.of == expected) all.emplace_back(one.name);
    }
    n.unit.refuse(unknown_name("unit of " + of, name, all));
  }

  const machine_words::line* words_;
  std::size_t next_ = 1;
};

}  // namespace orrery::detail
