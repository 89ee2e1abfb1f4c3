// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The flight recorder: what it keeps, that others can read it, and that a failure's last line is the wait that failed.
#include "orrery/transport/traced.hpp"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/host/memory.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/faulty.hpp"
#include "orrery/transport/threads.hpp"

#include "run/pairs.hpp"
#include "support/time_limit.hpp"

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
void run(const std::vector<orrery::faults::scripted_fault>& script, const orrery::trace_options& how, const Then& then,
         double deadline = 3600) {
  const time_limit limit;
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
  const auto reached = [&] { return texts.str().find("rank 1 is not waiting") != std::string::npos; };
  for (double deadline = 0.3; deadline < 30 && !reached(); deadline *= 3) {
    texts.str("");
    run(
        {orrery::faults::stops(1, {0, 1}, 3600)}, {.file_on_failure = prefix, .stream_on_failure = &texts},
        [](recorder&) {}, deadline);
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
    CHECK(text.find('\n', failed) == text.rfind('\n', text.size() - 2));  // only the message follows
    CHECK(text.rfind("this world cannot be used any more\n") == text.size() - 35);
    CHECK(texts.str().find(text) != std::string::npos);
  }
}

TEST_CASE("a rank with an injected failure writes its events, too") {
  std::ostringstream texts;
  run({orrery::faults::fails(2, {0, 1})}, {.stream_on_failure = &texts}, [](recorder&) {});
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

TEST_CASE("a recorder of no events is refused") {
  CHECK_THROWS_WITH_AS(orrery::threads::run(1,
                                            [](orrery::threads::world& on) {
                                              orrery::traced none{on, {.events = 0}};
                                            }),
                       "orrery: traced: events is 0, expected at least 1", std::invalid_argument);
}

namespace {

/// A rank of three that is alone: nothing is sent, and what happens in each call is up to the test.
struct scripted_world {
  using memory = orrery::detail::host_memory;

  int number = 0;
  /// Is told the name of each member that is called.
  std::function<void(const std::string&)> happens = [](const std::string&) {};
  /// Changes the text of rank 0 that is gathered.
  std::function<std::string(const std::string&)> first_text = [](const std::string& text) { return text; };

  [[nodiscard]] int rank() const { return number; }
  [[nodiscard]] int size() const { return 3; }
  [[nodiscard]] bool usable() const { return number != 2; }
  void barrier() const { happens("barrier"); }
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text) const {
    happens("all_gather");
    return {first_text(text), number == 1 ? text : "", number == 2 ? text : ""};
  }
  template <class T>
  void all_reduce_sum(std::span<T> values) const {
    happens("all_reduce_sum");
    for (T& value : values) value *= 3;
  }

  struct channel {
    const scripted_world* world;

    void begin() { world->happens("begin"); }
    void post(int exchange) { world->happens("post " + std::to_string(exchange)); }
    void posted() { world->happens("posted"); }
    void await(int exchange) { world->happens("await " + std::to_string(exchange)); }
    void abandon(const std::string& why) { world->happens("abandon " + why); }
    [[nodiscard]] int context() const { return 7; }
  };
  [[nodiscard]] channel open(const orrery::program&, const std::vector<orrery::exchange_pieces>&) {
    happens("open");
    return {this};
  }
};
using scripted_recorder = orrery::traced<scripted_world>;
static_assert(orrery::detail::batching<orrery::detail::channel_of<scripted_recorder>>);
static_assert(orrery::detail::abandonable<orrery::detail::channel_of<scripted_recorder>>);

/// Opens a ring's plan, with two exchanges that send `bytes` each.
auto open_ring(scripted_recorder& tracing, std::int64_t bytes = 8, orrery::pass p = orrery::pass::forward) {
  const orrery::program steps = orrery::program_of(orrery::ring{}, tracing.rank(), 3, p);
  std::vector<orrery::exchange_pieces> pieces(static_cast<std::size_t>(steps.exchanges.size()));
  for (orrery::exchange_pieces& of_exchange : pieces) {
    of_exchange.sent = {{nullptr, bytes - 1}, {nullptr, 1}};
    of_exchange.received = {{nullptr, 100}};
  }
  return tracing.open(steps, pieces);
}

/// One call of an executor on a ring's forward plan.
template <class Channel>
void call_ring(Channel& channel) {
  channel.begin();
  for (int exchange = 0; exchange < 2; ++exchange) {
    channel.post(exchange);
    channel.posted();
    channel.await(exchange);
  }
}

json trace_of(const scripted_recorder& tracing) {
  std::ostringstream text;
  tracing.write_json(text);
  return json::parse(text.str());
}
std::string text_of(const scripted_recorder& tracing) {
  std::ostringstream text;
  tracing.write_text(text);
  return text.str();
}

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}
bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

double begin_of(const json& event) { return event["ts"].number(); }
double end_of(const json& event) { return event["ts"].number() + event["dur"].number(); }
/// Times are written in microseconds with three digits.
bool same_time(double a, double b) { return a - b < 0.002 && b - a < 0.002; }

/// Returns when a millisecond has passed.
void take_a_millisecond() {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds{1};
  while (std::chrono::steady_clock::now() < end) {}
}

}  // namespace

TEST_CASE("the first failure is written down, wherever it is, and no other") {
  struct failure {
    std::string where;       // it is thrown
    std::string last_event;  // that is recorded, the one that failed or the last before it; none for the construction
    bool marked;             // the event is the one that failed
  };
  const std::string message = "key shard 2 from rank 2, key shard 0 to rank 1";
  for (const failure& one : {
           failure{"begin", "begin forward", true},
           failure{"post 0", "post " + message, true},
           failure{"posted", "post " + message, true},
           failure{"await 0", "wait for " + message, true},
           failure{"abandon in step 1: out of memory", "wait for " + message, false},
           failure{"barrier", "wait for " + message, false},
           failure{"all_gather", "wait for " + message, false},
           failure{"all_reduce_sum", "wait for " + message, false},
           failure{"open", "wait for " + message, false},
       }) {
    CAPTURE(one.where);
    const std::string prefix = "test_traced_first";
    const removed_at_the_end files{prefix, 1};
    std::ostringstream stream;
    scripted_world world;
    scripted_recorder tracing{world, {.file_on_failure = prefix, .stream_on_failure = &stream}};
    auto channel = open_ring(tracing);
    const bool abandons = one.where.find("abandon") == 0;
    const std::string cause = abandons ? "failed in step 1: out of memory" : "no " + one.where;
    world.happens = [&](const std::string& what) {
      if (what != one.where || abandons) return;
      take_a_millisecond();
      throw std::domain_error{cause};
    };
    const auto all = [&] {
      channel.begin();
      channel.post(0);
      channel.posted();
      channel.await(0);
      if (abandons) channel.abandon("in step 1: out of memory");
      std::vector<double> values{1};
      tracing.all_reduce_sum(std::span{values});
      CHECK(values[0] == 3);
      tracing.barrier();
      static_cast<void>(tracing.all_gather("text"));
      static_cast<void>(open_ring(tracing));
    };
    if (abandons) {
      all();
    } else {
      CHECK_THROWS_WITH_AS(all(), cause.c_str(), std::domain_error);
    }
    const std::string text = text_of(tracing);
    const std::string trace = read(prefix + ".0.json");
    CHECK(stream.str() == text);
    CHECK(read(prefix + ".0.txt") == text);
    CHECK(ends_with(text, " " + cause + "\n"));
    CHECK(count(text, "<- failed here\n") == (one.marked ? 1 : 0));
    const std::size_t end_of_event = text.rfind('\n', text.size() - 2);
    CHECK(ends_with(text.substr(0, end_of_event), one.last_event + (one.marked ? "  <- failed here" : "")));

    const json parsed = json::parse(trace);
    const std::vector<json> marks = of(parsed, 0, "i");
    REQUIRE(marks.size() == 1);
    CHECK(marks[0]["name"].text == cause);
    const std::vector<json> slices = of(parsed, 0, "X");
    REQUIRE_FALSE(slices.empty());
    for (const json& slice : slices) {
      const bool failed = one.marked && &slice == &slices.back();
      REQUIRE(slice["args"].members.count("failed") == (failed ? 1 : 0));
      if (failed) CHECK(slice["args"]["failed"].text == cause);
      if (failed) CHECK(slice["dur"].number() >= 1000 - 0.002);
    }

    // Whatever fails later, even with other events, changes nothing.
    world.happens = [&](const std::string& what) {
      if (what != "begin" && what.find("abandon") != 0) throw std::domain_error{"a later failure"};
    };
    channel.begin();
    channel.abandon("in step 0: later");
    CHECK_THROWS_AS(channel.post(0), std::domain_error);
    CHECK_THROWS_AS(channel.posted(), std::domain_error);
    CHECK_THROWS_AS(channel.await(0), std::domain_error);
    CHECK_THROWS_AS(tracing.barrier(), std::domain_error);
    CHECK_THROWS_AS(static_cast<void>(tracing.all_gather("text")), std::domain_error);
    CHECK_THROWS_AS(static_cast<void>(open_ring(tracing)), std::domain_error);
    CHECK(stream.str() == text);
    CHECK(read(prefix + ".0.txt") == text);
    CHECK(read(prefix + ".0.json") == trace);
    CHECK(ends_with(text_of(tracing), " " + cause + "\n"));
    CHECK(of(trace_of(tracing), 0, "i").size() == 1);
  }
}

TEST_CASE("everything is forwarded to the wrapped world, once and in order") {
  scripted_world world;
  std::string calls;
  world.happens = [&](const std::string& what) { calls += what + "; "; };
  scripted_recorder tracing{world};
  CHECK(calls == "all_gather; all_gather; ");
  calls.clear();
  auto channel = open_ring(tracing);
  call_ring(channel);
  channel.abandon("in step 1");
  tracing.barrier();
  CHECK(tracing.all_gather("text") == std::vector<std::string>{"text", "", ""});
  std::vector<float> values{1, 2};
  tracing.all_reduce_sum(std::span{values});
  CHECK(values == std::vector<float>{3, 6});
  CHECK(calls ==
        "open; begin; post 0; posted; await 0; post 1; posted; await 1; abandon in step 1; barrier; all_gather; "
        "all_reduce_sum; ");
  CHECK(channel.context() == 7);
  CHECK(tracing.size() == 3);
  for (const int number : {0, 1, 2}) {
    scripted_world other{.number = number};
    scripted_recorder recorder_of_other{other};
    CHECK(recorder_of_other.rank() == number);
    CHECK(recorder_of_other.usable() == (number != 2));
  }
}

TEST_CASE("the time of posted() counts to the last post") {
  scripted_world world;
  scripted_recorder tracing{world};
  auto channel = open_ring(tracing);
  world.happens = [](const std::string& what) {
    if (what == "posted") take_a_millisecond();
  };
  call_ring(channel);
  const json trace = trace_of(tracing);
  const std::vector<json> posts = of(trace, 0, "X", "post");
  REQUIRE(posts.size() == 2);
  for (const json& post : posts) CHECK(post["dur"].number() >= 1000 - 0.002);
  CHECK(of(trace, 0, "X", "wait").size() == 2);
  CHECK(count(text_of(tracing), "post ") == 2);
}

TEST_CASE("each event, gap and message has its own times, step, call and bytes") {
  scripted_world world;
  world.happens = [](const std::string& what) {
    if (what != "posted") take_a_millisecond();
  };
  scripted_recorder tracing{world};
  auto forward = open_ring(tracing, 8);
  auto other = open_ring(tracing, 24, orrery::pass::circulate_keys);
  call_ring(forward);
  take_a_millisecond();  // between calls, nothing is computed for any of them
  other.begin();
  take_a_millisecond();  // a tile before the first post
  other.post(0);
  take_a_millisecond();
  other.await(0);
  const json trace = trace_of(tracing);

  struct expected_slice {
    std::string category, name, call, step, pass, bytes;
  };
  const std::string first = "key shard 2 from rank 2, key shard 0 to rank 1";
  const std::string second = "key shard 1 from rank 2, key shard 2 to rank 1";
  const std::vector<json> slices = of(trace, 0, "X");
  std::vector<const json*> events;  // without the gaps
  for (const json& slice : slices)
    if (slice["cat"].text != "compute") events.push_back(&slice);
  const expected_slice expected[] = {
      {"begin", "begin forward", "0", "0", "forward", ""},
      {"post", "post " + first, "0", "0", "forward", "8"},
      {"wait", "wait for " + first, "0", "1", "forward", "8"},
      {"post", "post " + second, "0", "1", "forward", "8"},
      {"wait", "wait for " + second, "0", "2", "forward", "8"},
      {"begin", "begin circulate_keys", "1", "0", "circulate_keys", ""},
      {"post", "post " + first, "1", "0", "circulate_keys", "24"},
      {"wait", "wait for " + first, "1", "1", "circulate_keys", "24"},
  };
  REQUIRE(events.size() == std::size(expected));
  for (std::size_t i = 0; i < events.size(); ++i) {
    CAPTURE(i);
    const json& event = *events[i];
    CHECK(event["cat"].text == expected[i].category);
    CHECK(event["name"].text == expected[i].name);
    CHECK(event["args"]["call"].text == expected[i].call);
    CHECK(event["args"]["step"].text == expected[i].step);
    CHECK(event["args"]["pass"].text == expected[i].pass);
    CHECK(event["args"].members.count("bytes sent") == (expected[i].bytes.empty() ? 0 : 1));
    if (!expected[i].bytes.empty()) CHECK(event["args"]["bytes sent"].text == expected[i].bytes);
    CHECK(event["dur"].number() >= 1000 - 0.002);
    if (i > 0) CHECK(begin_of(event) >= end_of(*events[i - 1]) - 0.002);
  }

  // The text has the same durations, in milliseconds with three digits.
  std::istringstream lines{text_of(tracing)};
  std::string line;
  std::getline(lines, line);
  for (const json* event : events) {
    double start = 0, duration = 0;
    REQUIRE(static_cast<bool>(lines >> start >> duration));
    CHECK(std::abs(1000 * duration - (*event)["dur"].number()) < 0.51);
    std::getline(lines, line);
  }

  // A gap fills all the time between two events of a call, and is named after the step of the event before it.
  for (std::size_t i = 0; i < slices.size(); ++i) {
    if (slices[i]["cat"].text != "compute") continue;
    CAPTURE(i);
    REQUIRE(i > 0);
    REQUIRE(i + 1 < slices.size());
    const json& before = slices[i - 1];
    const json& after = slices[i + 1];
    CHECK(same_time(begin_of(slices[i]), end_of(before)));
    CHECK(same_time(end_of(slices[i]), begin_of(after)));
    CHECK(after["cat"].text != "begin");
    CHECK(slices[i]["name"].text == "step " + before["args"]["step"].text);
    CHECK(slices[i]["args"]["call"].text == before["args"]["call"].text);
  }
  for (const std::size_t i : {6U, 7U}) {  // after the tiles of this test
    const auto gap = std::find_if(slices.begin(), slices.end(), [&](const json& slice) {
      return slice["cat"].text == "compute" && same_time(end_of(slice), begin_of(*events[i]));
    });
    REQUIRE(gap != slices.end());
    CHECK((*gap)["dur"].number() >= 1000 - 0.002);
  }

  // A message is in flight from the beginning of its post to the end of its wait.
  const std::vector<json> flights = of(trace, 0, "b");
  const std::vector<json> landings = of(trace, 0, "e");
  REQUIRE(flights.size() == 3);
  REQUIRE(landings.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    const json& post = *events[std::size_t{1} + 2 * i + (i == 2 ? 1 : 0)];
    const json& wait = *events[std::size_t{2} + 2 * i + (i == 2 ? 1 : 0)];
    CHECK(same_time(begin_of(flights[i]), begin_of(post)));
    CHECK(same_time(begin_of(landings[i]), end_of(wait)));
    CHECK(flights[i]["id"].text == landings[i]["id"].text);
    CHECK(flights[i]["args"]["call"].text == post["args"]["call"].text);
  }
}

TEST_CASE("an exchange that only sends, or only receives, names one peer") {
  scripted_world world;
  scripted_recorder tracing{world};
  orrery::builder schedule{0, 3};
  schedule.begin_exchange(1, orrery::schedule::no_rank);
  schedule.send(orrery::key(0));
  schedule.begin_exchange(orrery::schedule::no_rank, 2);
  schedule.receive(orrery::key(2));
  schedule.next_step();
  auto channel = tracing.open(schedule, {{{{nullptr, 8}}, {}}, {{}, {{nullptr, 8}}}});
  channel.begin();
  channel.post(0);
  channel.post(1);
  const std::string text = text_of(tracing);
  CHECK(count(text, "  post key shard 0 to rank 1\n") == 1);
  CHECK(count(text, "  post key shard 2 from rank 2\n") == 1);
}

TEST_CASE("a message belongs to its own call, also after a call that was not finished") {
  scripted_world world;
  scripted_recorder tracing{world};
  auto channel = open_ring(tracing);
  channel.begin();
  channel.post(0);  // and never awaited
  channel.begin();
  take_a_millisecond();
  channel.post(0);
  channel.await(0);
  const json trace = trace_of(tracing);
  const std::vector<json> posts = of(trace, 0, "X", "post");
  const std::vector<json> waits = of(trace, 0, "X", "wait");
  const std::vector<json> flights = of(trace, 0, "b");
  const std::vector<json> landings = of(trace, 0, "e");
  REQUIRE(posts.size() == 2);
  REQUIRE(waits.size() == 1);
  REQUIRE(flights.size() == 2);
  CHECK(flights[0]["args"]["call"].text == "1");  // drawn when it lands
  CHECK(same_time(begin_of(flights[0]), begin_of(posts[1])));
  CHECK(same_time(begin_of(landings[0]), end_of(waits[0])));
  CHECK(flights[1]["args"]["call"].text == "0");
  CHECK(same_time(begin_of(flights[1]), begin_of(posts[0])));
  CHECK(same_time(begin_of(landings[1]), end_of(waits[0])));  // up to the last event
}

TEST_CASE("messages that are awaited in another order than they were posted are distinguished") {
  scripted_world world;
  scripted_recorder tracing{world};
  auto channel = open_ring(tracing);
  channel.begin();
  channel.post(0);
  take_a_millisecond();
  channel.post(1);
  channel.await(1);
  channel.await(0);
  const json trace = trace_of(tracing);
  const std::vector<json> posts = of(trace, 0, "X", "post");
  const std::vector<json> waits = of(trace, 0, "X", "wait");
  const std::vector<json> flights = of(trace, 0, "b");
  const std::vector<json> landings = of(trace, 0, "e");
  REQUIRE(flights.size() == 2);
  for (const std::size_t landed : {0U, 1U}) {
    CHECK(flights[landed]["args"]["exchange"].text == std::to_string(1 - landed));
    CHECK(same_time(begin_of(flights[landed]), begin_of(posts[1 - landed])));
    CHECK(same_time(begin_of(landings[landed]), end_of(waits[landed])));
  }
}

TEST_CASE("what is in flight when a rank fails is drawn up to the failure") {
  scripted_world world;
  scripted_recorder tracing{world};
  auto channel = open_ring(tracing);
  channel.begin();
  channel.post(0);
  take_a_millisecond();
  channel.abandon("in step 0: out of memory");
  const json trace = trace_of(tracing);
  REQUIRE(of(trace, 0, "e").size() == 1);
  REQUIRE(of(trace, 0, "i").size() == 1);
  CHECK(same_time(begin_of(of(trace, 0, "e")[0]), begin_of(of(trace, 0, "i")[0])));
  CHECK(begin_of(of(trace, 0, "i")[0]) >= end_of(of(trace, 0, "X").back()) + 1000 - 0.002);
}

TEST_CASE("ranks of one machine count their times from the origin of the first of them") {
  if (!std::ifstream{"/proc/sys/kernel/random/boot_id"}) return;  // where machines are not told apart
  // Rank 0 says that its origin was an hour ago: on its machine, or on another one.
  for (const bool same_machine : {true, false}) {
    scripted_world world{.number = 1};
    world.first_text = [&](const std::string& text) {
      const std::size_t number = text.rfind(' ');
      if (text.empty() || number == std::string::npos) return std::string{};
      std::string other = text.substr(0, number + 1);
      if (!same_machine) other[0] = other[0] == 'x' ? 'y' : 'x';
      return other + std::to_string(std::stoll(text.substr(number + 1)) - 3'600'000'000'000);
    };
    scripted_recorder tracing{world};
    auto channel = open_ring(tracing);
    channel.begin();
    const double begun = begin_of(of(trace_of(tracing), 1, "X", "begin")[0]);
    CHECK(begun >= (same_machine ? 3600e6 : 0));
    CHECK((begun >= 3600e6) == same_machine);
  }
}

TEST_CASE("the events that are kept are the last ones, from one event to all of them") {
  for (std::int64_t kept = 1; kept <= 7; ++kept) {
    CAPTURE(kept);
    scripted_world world;
    scripted_recorder tracing{world, {.events = kept}};
    auto channel = open_ring(tracing);
    call_ring(channel);  // 5 events
    const std::string text = text_of(tracing);
    const int lost = kept < 5 ? static_cast<int>(5 - kept) : 0;
    CHECK(count(text, "earlier events") == (lost > 0 ? 1 : 0));
    if (lost > 0) CHECK(text.find("  (" + std::to_string(lost) + " earlier events)\n") != std::string::npos);
    CHECK(count(text, "\n") == 1 + (lost > 0 ? 1 : 0) + (5 - lost));
    CHECK(count(text, "begin forward") == (lost < 1 ? 1 : 0));
    CHECK(count(text, "post ") == (lost < 2 ? 2 : lost < 4 ? 1 : 0));
    CHECK(count(text, "wait for ") == (lost < 3 ? 2 : 1));
    // A message whose post is lost is not drawn.
    CHECK(of(trace_of(tracing), 0, "b").size() == (lost < 2 ? 2 : lost < 4 ? 1 : 0));
  }
}

TEST_CASE("reset forgets what was recorded, and nothing else") {
  scripted_world world;
  scripted_recorder tracing{world, {.events = 3}};
  auto channel = open_ring(tracing);
  call_ring(channel);
  tracing.reset();
  CHECK(of(trace_of(tracing), 0, "X").empty());
  CHECK(count(text_of(tracing), "\n") == 1);
  channel.begin();
  const json trace = trace_of(tracing);
  REQUIRE(of(trace, 0, "X").size() == 1);
  CHECK(of(trace, 0, "X")[0]["args"]["call"].text == "1");
}

TEST_CASE("rank 0 writes the timeline of all ranks, to a stream or a file, and says so if it cannot") {
  const std::string path = "test_traced_timeline.json";
  std::remove(path.c_str());
  for (const int number : {1, 0}) {
    scripted_world world{.number = number};
    scripted_recorder tracing{world};
    auto channel = open_ring(tracing);
    call_ring(channel);
    std::ostringstream stream;
    tracing.write_timeline(stream);
    tracing.write_timeline(path);
    CHECK(read(path) == stream.str());
    CHECK(stream.str().empty() == (number == 1));
    if (number == 1) {
      tracing.write_timeline("no/such/folder/timeline.json");
      continue;
    }
    CHECK(of(json::parse(stream.str()), 0, "X", "post").size() == 2);
    CHECK_THROWS_WITH_AS(tracing.write_timeline("no/such/folder/timeline.json"),
                         "orrery: traced: the timeline could not be written to no/such/folder/timeline.json",
                         std::runtime_error);
  }
  std::remove(path.c_str());
}

TEST_CASE("a failure that cannot be written down is still thrown") {
  scripted_world world;
  scripted_recorder tracing{world, {.file_on_failure = "no/such/folder/trace"}};
  auto channel = open_ring(tracing);
  world.happens = [](const std::string& what) { throw std::domain_error{what}; };
  CHECK_THROWS_WITH_AS(channel.begin(), "begin", std::domain_error);
  CHECK(ends_with(text_of(tracing), " begin\n"));
}
