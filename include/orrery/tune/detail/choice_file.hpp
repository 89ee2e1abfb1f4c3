// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <charconv>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "orrery/detail/initializer_text.hpp"
#include "orrery/detail/number_digest.hpp"
#include "orrery/schedule/block.hpp"
#include "orrery/tune/schedule_choice.hpp"

namespace orrery::detail {

/// A choice of a schedule as it stands in a file: what it depends on, line by line, and what was chosen among what.
struct remembered_choice {
  std::string key;  ///< lines "name value", each with its end
  std::vector<schedule_choice::candidate> ranked;

  bool operator==(const remembered_choice&) const = default;
};

/// A text in one line: other characters than printable ones become spaces.
[[nodiscard]] inline std::string in_one_line(std::string_view text) {
  std::string line;
  for (const char c : text) line += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  return line;
}

[[nodiscard]] inline std::string digest_of_text(std::string_view text) {
  number_digest digest;
  for (const char c : text) digest.add(static_cast<unsigned char>(c));
  return digest.text();
}

/// A candidate as a line, without its index: "circulate_keys 0.0123 0 ring", with the predicted and measured seconds.
[[nodiscard]] inline std::string line_of(const schedule_choice::candidate& c) {
  return std::string{name_of(c.circulate)} + " " + initializer_text::code_of(c.predicted) + " " +
         initializer_text::code_of(c.measured) + " " + in_one_line(c.name);
}

/// Reads what `line_of` writes. Returns false for anything else.
[[nodiscard]] inline bool read_line(std::string_view line, schedule_choice::candidate& c) {
  const auto word = [&] {
    const std::size_t space = line.find(' ');
    const std::string_view one = line.substr(0, space);
    line.remove_prefix(space == line.npos ? line.size() : space + 1);
    return one;
  };
  const auto seconds = [](std::string_view text, double& to) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), to);
    return error == std::errc{} && end == text.data() + text.size() && to >= 0 && to <= 1e9;
  };
  const std::string_view circulate = word();
  bool is_pass = false;
  for (const schedule::pass p :
       {schedule::pass::forward, schedule::pass::circulate_keys, schedule::pass::circulate_queries}) {
    if (circulate != name_of(p)) continue;
    c.circulate = p;
    is_pass = true;
  }
  const std::string_view predicted = word(), measured = word();
  c.name = line;
  return is_pass && seconds(predicted, c.predicted) && seconds(measured, c.measured) && c.predicted > 0 &&
         !c.name.empty();
}

/// Choices as a text: a first line, then for each choice a line with a digest of the lines that follow, up to "end".
///
///     orrery schedule choices, format 1
///     choice 0123456789abcdef
///     key world 8
///     ...
///     schedule circulate_keys 0.0123 0 ring
///     ...
///     end
class choice_text {
 public:
  static constexpr std::string_view first_line = "orrery schedule choices, format 1";

  std::vector<remembered_choice> choices;
  std::string foreign;               ///< empty, or why the text is not one of choices
  std::vector<std::string> damaged;  ///< why choices were left out

  [[nodiscard]] static choice_text parse(std::string_view text) {
    choice_text made;
    if (text.empty()) return made;
    std::size_t at = 0;
    const std::string_view first = next_line(text, at);
    if (first != first_line) {
      made.foreign =
          "its first line is \"" + in_one_line(first.substr(0, 60)) + "\" and not \"" + std::string{first_line} + "\"";
      return made;
    }
    for (int line = 2; at < text.size();) {
      const int begun = line;
      const std::string_view head = next_line(text, at);
      ++line;
      const std::size_t body = at;
      bool ended = false;
      while (!ended && at < text.size() && text.substr(at, 7) != "choice ") {
        ended = next_line(text, at) == "end";
        ++line;
      }
      const std::string_view lines = text.substr(body, at - body);
      std::string why;
      if (head.substr(0, 7) != "choice ") {
        why = "it begins with \"" + in_one_line(head.substr(0, 60)) + "\"";
      } else if (!ended) {
        why = "it has no end";
      } else if (head.substr(7) != digest_of_text(lines)) {
        why = "its digest is that of other lines";
      }
      std::optional<remembered_choice> one;
      if (why.empty()) one = read(lines, why);
      if (one) {
        made.choices.push_back(std::move(*one));
      } else {
        made.damaged.push_back("the choice of line " + std::to_string(begun) + ": " + why);
      }
    }
    return made;
  }

  [[nodiscard]] std::string text() const {
    std::string all = std::string{first_line} + "\n";
    for (const remembered_choice& one : choices) {
      std::string lines;
      for (std::size_t at = 0; at < one.key.size();) lines += "key " + std::string{next_line(one.key, at)} + "\n";
      for (const schedule_choice::candidate& c : one.ranked) lines += "schedule " + line_of(c) + "\n";
      lines += "end\n";
      all += "choice " + digest_of_text(lines) + "\n" + lines;
    }
    return all;
  }

  [[nodiscard]] const remembered_choice* find(const std::string& key) const noexcept {
    for (const remembered_choice& one : choices) {
      if (one.key == key) return &one;
    }
    return nullptr;
  }
  /// In place of one of the same key.
  void put(const remembered_choice& choice) {
    for (remembered_choice& one : choices) {
      if (one.key == choice.key) {
        one = choice;
        return;
      }
    }
    choices.push_back(choice);
  }

 private:
  [[nodiscard]] static std::string_view next_line(std::string_view text, std::size_t& at) noexcept {
    const std::size_t end = text.find('\n', at);
    const std::string_view line = text.substr(at, end == text.npos ? text.npos : end - at);
    at = end == text.npos ? text.size() : end + 1;
    return line;
  }

  [[nodiscard]] static std::optional<remembered_choice> read(std::string_view lines, std::string& why) {
    remembered_choice one;
    for (std::size_t at = 0; at < lines.size();) {
      const std::string_view line = next_line(lines, at);
      if (line == "end") break;
      if (line.substr(0, 4) == "key ") {
        one.key += std::string{line.substr(4)} + "\n";
      } else if (line.substr(0, 9) != "schedule " || !read_line(line.substr(9), one.ranked.emplace_back())) {
        why = "it has a line \"" + in_one_line(line.substr(0, 60)) + "\"";
        return {};
      }
    }
    if (!one.key.empty() && !one.ranked.empty()) return one;
    why = one.key.empty() ? "it has no key" : "it has no schedule";
    return {};
  }
};

/// A file of choices. Reading and writing never throw but for memory: a choice can be made again.
class choice_file {
 public:
  /// Reads it. `note()` says what was wrong with it, if anything was.
  explicit choice_file(std::string path) : path_{std::move(path)} {
    std::error_code failure;
    const std::filesystem::file_status status = std::filesystem::status(path_, failure);
    if (!std::filesystem::exists(status)) return;  // none yet
    // A link stays one: what it leads to is replaced.
    if (std::filesystem::is_regular_file(status)) path_ = std::filesystem::canonical(path_, failure).string();
    std::ifstream file;
    if (std::filesystem::is_regular_file(status) && !failure) file.open(path_, std::ios::binary);
    if (!file.is_open()) {
      text_.foreign = "it is not a file that can be read";
      note_ = path_ + " is no file of choices and is neither read nor written: " + text_.foreign;
      return;
    }
    constexpr std::size_t most = std::size_t{1} << 24;
    std::string text(most + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(file.gcount()));
    if (text.size() > most) {
      text_.foreign = "it has more than 16 MiB";
    } else {
      text_ = choice_text::parse(text);
    }
    if (!text_.foreign.empty()) {
      note_ = path_ + " is no file of choices and is neither read nor written: " + text_.foreign;
    } else if (!text_.damaged.empty()) {
      note_ = path_ + " is damaged: " + text_.damaged.front() +
              (text_.damaged.size() == 1 ? "" : ", and " + std::to_string(text_.damaged.size() - 1) + " more") +
              "; what is damaged is not believed, and dropped with the next choice";
    }
  }

  [[nodiscard]] const remembered_choice* find(const std::string& key) const noexcept { return text_.find(key); }
  [[nodiscard]] const std::string& note() const noexcept { return note_; }

  /// Writes it with this choice, in one piece: readers see the file before or after.
  void put(const remembered_choice& choice) {
    if (!text_.foreign.empty()) return;
    text_.put(choice);
    const std::string beside = path_ + ".new";
    std::ofstream file{beside, std::ios::binary | std::ios::trunc};
    file << text_.text();
    file.close();
    if (file && std::rename(beside.c_str(), path_.c_str()) == 0) return;
    (void)std::remove(beside.c_str());
    note_ += (note_.empty() ? "" : "; ") + path_ + " cannot be written";
  }

 private:
  std::string path_;
  choice_text text_;
  std::string note_;
};

}  // namespace orrery::detail
