// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The flight recorder: what it keeps, that others can read it, and that a failure's last line is the wait that failed.
#include "orrery/transport/traced.hpp"

#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/topology/ring.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/faulty.hpp"
#include "orrery/transport/threads.hpp"

#include "run/pairs.hpp"

namespace {

using unlucky_world = orrery::faulty<orrery::threads::world>;
using recorder = orrery::traced<unlucky_world>;
static_assert(orrery::transport<recorder>);
static_assert(orrery::transport<orrery::counted<recorder>>);

/// As much of JSON as there is in a trace; throws where it is none.
struct json {
  std::string text;  // of a string or a number
  std::map<std::string, json> members;
  std::vector<json> elements;

  [[nodiscard]] const json& operator[](const std::string& name) const { return members.at(name); }
  [[nodiscard]] double number() const { return std::stod(text); }

  static json parse(const std::string& all) {
    std::size_t at = 0;
    json value = parse(all, at);
    skip(all, at);
    if (at != all.size()) throw std::runtime_error{"more after the end"};
    return value;
  }

 private:
  static void skip(const std::string& all, std::size_t& at) {
    while (at < all.size() && std::isspace(static_cast<unsigned char>(all[at])) != 0) ++at;
  }
  static void expect(const std::string& all, std::size_t& at, char c) {
    skip(all, at);
    if (at >= all.size() || all[at] != c)
      throw std::runtime_error{std::string{"expected "} + c + " at " + std::to_string(at)};
    ++at;
  }
  static bool next_is(const std::string& all, std::size_t& at, char c) {
    skip(all, at);
    return at < all.size() && all[at] == c;
  }
  static std::string parse_string(const std::string& all, std::size_t& at) {
    expect(all, at, '"');
    std::string text;
    for (; all.at(at) != '"'; ++at) {
      if (all[at] == '\\') ++at;
      if (static_cast<unsigned char>(all.at(at)) < 0x20) throw std::runtime_error{"a control character in a string"};
      text += all[at];
    }
    ++at;
    return text;
  }
  static json parse(const std::string& all, std::size_t& at) {
    json value;
    if (next_is(all, at, '{')) {
      for (expect(all, at, '{'); !next_is(all, at, '}');) {
        if (!value.members.empty()) expect(all, at, ',');
        skip(all, at);
        const std::string name = parse_string(all, at);
        expect(all, at, ':');
        if (!value.members.emplace(name, parse(all, at)).second) throw std::runtime_error{"twice: " + name};
      }
      expect(all, at, '}');
    } else if (next_is(all, at, '[')) {
      for (expect(all, at, '['); !next_is(all, at, ']');) {
        if (!value.elements.empty()) expect(all, at, ',');
        value.elements.push_back(parse(all, at));
      }
      expect(all, at, ']');
    } else if (next_is(all, at, '"')) {
      value.text = parse_string(all, at);
    } else {
      std::size_t length = 0;
      std::stod(all.substr(at), &length);
      value.text = all.substr(at, length);
      at += length;
    }
    return value;
  }
};

std::string read(const std::string& path) {
  std::ifstream file{path};
  return {std::istreambuf_iterator<char>{file}, {}};
}

/// A rank's events of one kind.
std::vector<json> of(const json& trace, int rank, const std::string& phase, const std::string& category = "") {
  std::vector<json> found;
  for (const json& one : trace["traceEvents"].elements) {
    if (one["pid"].number() != rank || one["ph"].text != phase) continue;
    if (category.empty() || one["cat"].text == category) found.push_back(one);
  }
  return found;
}

/// Runs a ring of three on a recorder, and calls `then(recorder)` on each rank. What ranks throw is dropped.
template <class Then>
void run(const std::vector<orrery::scripted_fault>& script, const orrery::trace_options& how, const Then& then,
         double deadline = 3600) {
  try {
    orrery::threads::run(3, {.deadline = deadline}, [&](orrery::threads::world& on) {
      unlucky_world unlucky{on, script};
      recorder tracing{unlucky, how};
      try {
        pairs::check_rank<orrery::ring>(tracing, orrery::pass::forward, 12, 12);  // two calls
      } catch (const std::exception&) {
        then(tracing);
        throw;
      }
      then(tracing);
    });
  } catch (const std::exception&) {}
}

}  // namespace

TEST_CASE("a timeline of all ranks: every wait, message and gap, in order") {
  std::ostringstream all;
  run({}, {}, [&](recorder& tracing) { tracing.write_timeline(all); });
  const json trace = json::parse(all.str());
  for (int rank = 0; rank < 3; ++rank) {
    CHECK(of(trace, rank, "M").size() == 3);
    CHECK(of(trace, rank, "X", "begin").size() == 2);
    CHECK(of(trace, rank, "X", "post").size() == 2 * 2);
    const std::vector<json> waits = of(trace, rank, "X", "wait");
    REQUIRE(waits.size() == 2 * 2);
    const std::string before = std::to_string((rank + 2) % 3);
    CHECK(waits[0]["name"].text == "wait for key shard " + before + " from rank " + before + ", key shard " +
                                       std::to_string(rank) + " to rank " + std::to_string((rank + 1) % 3));
    CHECK(waits[0]["args"]["step"].text == "1");
    CHECK(waits[0]["args"]["call"].text == "0");
    CHECK(waits[3]["args"]["step"].text == "2");
    CHECK(waits[3]["args"]["call"].text == "1");
    CHECK(waits[3]["args"]["bytes sent"].text == "32");
    // Slices follow each other, and messages fly from their post to the end of their wait.
    double end = 0;
    for (const json& slice : of(trace, rank, "X")) {
      CHECK(slice["ts"].number() >= end - 0.002);
      end = slice["ts"].number() + slice["dur"].number();
    }
    const std::vector<json> flights = of(trace, rank, "b");
    const std::vector<json> landings = of(trace, rank, "e");
    REQUIRE(flights.size() == 4);
    REQUIRE(landings.size() == 4);
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(flights[i]["id"].text == landings[i]["id"].text);
      CHECK(flights[i]["ts"].number() <= landings[i]["ts"].number());
    }
  }
}

namespace {

/// Removes what the ranks' recorders have written, however the test ends.
struct removed_at_the_end {
  std::string prefix;
  int ranks;
  ~removed_at_the_end() {
    for (int rank = 0; rank < ranks; ++rank) {
      for (const char* end : {".json", ".txt"}) std::remove((prefix + "." + std::to_string(rank) + end).c_str());
    }
  }
};

}  // namespace

TEST_CASE("a failure writes each rank's last events; the wait that failed is the last, and says why") {
  const std::string prefix = "test_traced_failure";
  const removed_at_the_end files{prefix, 3};
  std::ostringstream texts;
  // A busy machine may miss a short deadline of itself, before the fault.
  const auto reached = [&] { return texts.str().find("rank 1 does not wait for anybody") != std::string::npos; };
  for (double deadline = 0.3; deadline < 30 && !reached(); deadline *= 3) {
    texts.str("");
    run(
        {orrery::stops(1, {0, 1}, 3600)}, {.file_on_failure = prefix, .stream_on_failure = &texts}, [](recorder&) {},
        deadline);
  }
  for (const int rank : {0, 2}) {
    const std::string name = prefix + "." + std::to_string(rank);
    CAPTURE(texts.str());
    const json trace = json::parse(read(name + ".json"));
    const std::vector<json> slices = of(trace, rank, "X");
    REQUIRE(!slices.empty());
    const json& last = slices.back();
    CHECK(last["cat"].text == "wait");
    CHECK(last["args"]["call"].text == "0");
    CHECK(last["args"]["failed"].text.find(" s in step ") != std::string::npos);
    CHECK(last["dur"].number() > 0.1e6);
    for (std::size_t i = 0; i + 1 < slices.size(); ++i) CHECK(slices[i]["args"].members.count("failed") == 0);
    REQUIRE(of(trace, rank, "i").size() == 1);
    CHECK(of(trace, rank, "i")[0]["name"].text == last["args"]["failed"].text);

    const std::string text = read(name + ".txt");
    CHECK(text.find("wait for key shard ") != std::string::npos);
    const std::size_t failed = text.find("<- failed here\n");
    REQUIRE(failed != std::string::npos);
    CHECK(text.find('\n', failed) == text.rfind('\n', text.size() - 2));  // only the sentence follows
    CHECK(text.rfind("this world cannot be used any more\n") == text.size() - 35);
    CHECK(texts.str().find(text) != std::string::npos);
  }
}

TEST_CASE("a rank that is told to fail writes its events, too") {
  std::ostringstream texts;
  run({orrery::fails(2, {0, 1})}, {.stream_on_failure = &texts}, [](recorder&) {});
  CHECK(texts.str().find("rank 2 in step 1 of call 0 fails, as its script says\n") != std::string::npos);
}

TEST_CASE("only the last events are kept") {
  std::string text;
  std::ostringstream trace;
  run({}, {.events = 3}, [&](recorder& tracing) {
    if (tracing.rank() != 0) return;
    std::ostringstream to;
    tracing.write_text(to);
    text = to.str();
    tracing.write_json(trace);
  });
  CHECK(text.find("  (7 earlier events)\n") != std::string::npos);
  CHECK(of(json::parse(trace.str()), 0, "X", "wait").size() == 2);
  CHECK(of(json::parse(trace.str()), 0, "X", "post").size() == 1);
}

TEST_CASE("a recorder without room is refused") {
  CHECK_THROWS_WITH_AS(orrery::threads::run(1,
                                            [](orrery::threads::world& on) {
                                              orrery::traced none{on, {.events = 0}};
                                            }),
                       "orrery: traced: events is 0, expected at least 1", std::invalid_argument);
}
