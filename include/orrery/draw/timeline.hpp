// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace orrery {

/// What happened when on which rank, in the Chrome trace event format (JSON), which https://ui.perfetto.dev and
/// chrome://tracing draw: each rank is a process with one row of slices, and a row for each lane's messages in flight.
/// Times are nanoseconds from an origin that all ranks share.
class timeline {
 public:
  /// What a viewer shows of an event when it is chosen: names and values.
  using details = std::vector<std::pair<std::string, std::string>>;

  /// Events of this rank follow.
  void begin_rank(int rank) {
    rank_ = rank;
    const std::string name = "rank " + std::to_string(rank);
    add("{\"name\":\"process_name\",\"ph\":\"M\"," + place() + ",\"args\":" + object({{"name", name}}) + "}");
    add("{\"name\":\"process_sort_index\",\"ph\":\"M\"," + place() +
        ",\"args\":{\"sort_index\":" + std::to_string(rank) + "}}");
    add("{\"name\":\"thread_name\",\"ph\":\"M\"," + place() + ",\"args\":" + object({{"name", "steps"}}) + "}");
  }
  /// The rank was at this. Slices of one rank do not overlap.
  void slice(const std::string& category, const std::string& name, std::int64_t start, std::int64_t end,
             const details& more = {}) {
    add("{\"name\":" + quoted(name) + ",\"cat\":" + quoted(category) + ",\"ph\":\"X\",\"ts\":" + microseconds(start) +
        ",\"dur\":" + microseconds(end - start) + "," + place() + ",\"args\":" + object(more) + "}");
  }
  /// A message was under way.
  void flight(int lane, const std::string& name, std::int64_t start, std::int64_t end, const details& more = {}) {
    const std::string both = "{\"name\":" + quoted(name) + ",\"cat\":" + quoted("lane " + std::to_string(lane)) +
                             ",\"id\":\"" + std::to_string(rank_) + "." + std::to_string(flights_++) + "\"," + place();
    add(both + ",\"ph\":\"b\",\"ts\":" + microseconds(start) + ",\"args\":" + object(more) + "}");
    add(both + ",\"ph\":\"e\",\"ts\":" + microseconds(end) + "}");
  }
  /// Something happened to the rank as a whole.
  void mark(const std::string& name, std::int64_t at) {
    add("{\"name\":" + quoted(name) + ",\"ph\":\"i\",\"s\":\"p\",\"ts\":" + microseconds(at) + "," + place() + "}");
  }

  /// The events, one a line, with commas between them: part of a document.
  [[nodiscard]] const std::string& events() const noexcept { return events_; }

  /// A whole document of the parts of several ranks.
  [[nodiscard]] static std::string document(std::span<const std::string> parts) {
    std::string text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
    bool first = true;
    for (const std::string& part : parts) {
      if (part.empty()) continue;
      text += (first ? "" : ",\n") + part;
      first = false;
    }
    return text + "\n]}\n";
  }

 private:
  void add(const std::string& event) { events_ += (events_.empty() ? "" : ",\n") + event; }

  [[nodiscard]] std::string place() const { return "\"pid\":" + std::to_string(rank_) + ",\"tid\":0"; }

  [[nodiscard]] static std::string microseconds(std::int64_t nanoseconds) {
    char text[40];
    std::snprintf(text, sizeof text, "%.3f", static_cast<double>(nanoseconds) / 1e3);
    return text;
  }
  [[nodiscard]] static std::string quoted(const std::string& text) {
    std::string all = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') {
        all += {'\\', c};
      } else if (static_cast<unsigned char>(c) < 0x20) {
        char escaped[8];
        std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
        all += escaped;
      } else {
        all += c;
      }
    }
    return all + '"';
  }
  [[nodiscard]] static std::string object(const details& entries) {
    std::string text = "{";
    for (const auto& [name, value] : entries) {
      text += (text.size() == 1 ? "" : ",") + quoted(name) + ":" + quoted(value);
    }
    return text + "}";
  }

  std::string events_;
  int rank_ = 0;
  std::int64_t flights_ = 0;
};

}  // namespace orrery
