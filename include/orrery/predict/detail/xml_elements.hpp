// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace orrery::detail {

/// An element of a text in XML, with the index of the element that it stands in; -1: in none.
struct xml_element {
  std::string_view name;
  std::vector<std::pair<std::string_view, std::string_view>> attributes;
  int line = 0;
  int parent = -1;

  /// Null if there is no such attribute.
  [[nodiscard]] const std::string_view* find(std::string_view attribute) const noexcept {
    for (const auto& [key, value] : attributes) {
      if (key == attribute) return &value;
    }
    return nullptr;
  }
};

/// Reads the elements of a text that has elements, attributes and comments, and nothing else of XML: what NCCL writes.
/// Elements come in their order. Throws `std::invalid_argument` with the line for anything else.
class xml_elements {
 public:
  /// Messages begin with `caller`. The elements refer to the text.
  xml_elements(const char* caller, std::string_view text) : caller_{caller}, text_{text} {
    while (skip_spaces(), at_ < text_.size()) {
      if (!starts_with("<")) refuse(line_, "text stands between elements, which have attributes only");
      if (starts_with("<!--")) {
        skip_past("-->", "a comment");
      } else if (starts_with("<?")) {
        skip_past("?>", "a declaration");
      } else if (starts_with("</")) {
        close();
      } else {
        open();
      }
    }
    if (!open_.empty()) {
      const xml_element& one = elements_[static_cast<std::size_t>(open_.back())];
      refuse(line_, "the text ends in <" + std::string{one.name} + "> of line " + std::to_string(one.line));
    }
  }

  [[nodiscard]] const std::vector<xml_element>& all() const noexcept { return elements_; }
  [[noreturn]] void refuse(int line, const std::string& why) const {
    throw std::invalid_argument{"orrery: " + std::string{caller_} + ": line " + std::to_string(line) + ": " + why};
  }

 private:
  static constexpr std::size_t most_nested = 64;

  [[nodiscard]] bool starts_with(std::string_view what) const noexcept {
    return text_.substr(at_, what.size()) == what;
  }
  [[nodiscard]] static bool is_space(char c) noexcept { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }
  [[nodiscard]] static bool is_name(char c) noexcept {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  }
  void skip(std::size_t characters) noexcept {
    for (const char c : text_.substr(at_, characters)) line_ += c == '\n' ? 1 : 0;
    at_ += characters;
  }
  void skip_spaces() noexcept {
    while (at_ < text_.size() && is_space(text_[at_])) skip(1);
  }
  void skip_past(std::string_view end, const char* what) {
    const std::size_t found = text_.find(end, at_);
    if (found == text_.npos) refuse(line_, std::string{what} + " does not end");
    skip(found + end.size() - at_);
  }
  [[nodiscard]] std::string_view name(const char* of) {
    const std::size_t first = at_;
    while (at_ < text_.size() && is_name(text_[at_])) ++at_;
    if (at_ == first) refuse(line_, std::string{of} + " has no name");
    return text_.substr(first, at_ - first);
  }

  void close() {
    skip(2);
    const std::string_view closed = name("a closing tag");
    skip_spaces();
    if (open_.empty()) refuse(line_, "</" + std::string{closed} + "> closes nothing");
    const xml_element& one = elements_[static_cast<std::size_t>(open_.back())];
    if (one.name != closed) {
      refuse(line_, "</" + std::string{closed} + "> stands where </" + std::string{one.name} + "> of line " +
                        std::to_string(one.line) + " was expected");
    }
    if (!starts_with(">")) refuse(line_, "</" + std::string{closed} + " has no >");
    skip(1);
    open_.pop_back();
  }

  void open() {
    xml_element one;
    one.line = line_;
    skip(1);
    one.name = name("an element");
    one.parent = open_.empty() ? -1 : open_.back();
    const std::string tag = "<" + std::string{one.name} + ">";
    while (skip_spaces(), at_ < text_.size() && is_name(text_[at_])) {
      const std::string_view key = name("an attribute");
      skip_spaces();
      if (!starts_with("=")) refuse(line_, tag + ": " + std::string{key} + " has no value");
      skip(1);
      skip_spaces();
      const char quote = at_ < text_.size() ? text_[at_] : ' ';
      if (quote != '"' && quote != '\'') refuse(line_, tag + ": the value of " + std::string{key} + " has no quotes");
      skip(1);
      const std::size_t end = text_.find(quote, at_);
      const std::string_view value = text_.substr(at_, end == text_.npos ? text_.npos : end - at_);
      if (end == text_.npos || value.find('<') != value.npos) {
        refuse(line_, tag + ": the value of " + std::string{key} + " does not end");
      }
      if (one.find(key) != nullptr) refuse(line_, tag + ": " + std::string{key} + " is given twice");
      one.attributes.emplace_back(key, value);
      skip(value.size() + 1);
    }
    const bool is_single = starts_with("/>");
    if (!is_single && !starts_with(">")) refuse(line_, tag + " has no >");
    skip(is_single ? 2 : 1);
    elements_.push_back(std::move(one));
    if (is_single) return;
    open_.push_back(static_cast<int>(elements_.size()) - 1);
    if (open_.size() > most_nested) refuse(line_, "elements are nested more than 64 deep");
  }

  const char* caller_;
  std::string_view text_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::vector<xml_element> elements_;
  std::vector<int> open_;
};

}  // namespace orrery::detail
