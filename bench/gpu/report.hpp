// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace bench {

/// What was measured: rows of named values, printed as they come and written as JSON in the end.
class report {
 public:
  /// A value, as JSON writes it.
  class value {
   public:
    value(const char* text) : value{std::string{text}} {}  // NOLINT(google-explicit-constructor)
    value(const std::string& text) {                       // NOLINT(google-explicit-constructor)
      json_ = "\"";
      for (const char c : text) {
        if (c == '"' || c == '\\') json_ += '\\';
        if (static_cast<unsigned char>(c) >= ' ') json_ += c;
      }
      json_ += '"';
    }
    value(double number) {  // NOLINT(google-explicit-constructor)
      char text[32];
      std::snprintf(text, sizeof text, "%.6g", number);
      json_ = std::isfinite(number) ? text : "null";
    }
    value(std::int64_t number) : json_{std::to_string(number)} {}  // NOLINT(google-explicit-constructor)

    [[nodiscard]] const std::string& json() const { return json_; }

   private:
    std::string json_;
  };
  using row = std::vector<std::pair<std::string, value>>;

  /// A fact about the whole run.
  void set(const std::string& name, const value& is) { facts_.emplace_back(name, is); }
  void add(const std::string& section, const row& values) {
    std::printf("%-9s", section.c_str());
    for (const auto& [name, is] : values) std::printf("  %s %s", name.c_str(), is.json().c_str());
    std::printf("\n");
    std::fflush(stdout);
    rows_.push_back({{"section", section}});
    rows_.back().insert(rows_.back().end(), values.begin(), values.end());
  }

  void write(std::ostream& to) const {
    to << "{";
    for (const auto& [name, is] : facts_) to << "\"" << name << "\": " << is.json() << ",\n ";
    to << "\"rows\": [";
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      to << (i > 0 ? ",\n  {" : "\n  {");
      for (std::size_t j = 0; j < rows_[i].size(); ++j)
        to << (j > 0 ? ", \"" : "\"") << rows_[i][j].first << "\": " << rows_[i][j].second.json();
      to << "}";
    }
    to << "\n]}\n";
  }

 private:
  row facts_;
  std::vector<row> rows_;
};

}  // namespace bench
