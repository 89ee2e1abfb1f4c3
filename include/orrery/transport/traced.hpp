// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <ostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "orrery/detail/initializer_text.hpp"
#include "orrery/draw/timeline.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/adaptor.hpp"
#include "orrery/transport/detail/collective_signature.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/detail/peer_text.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery {

/// Options of `traced`: how many events each rank keeps, and where they are written after a failure.
struct trace_options {
  /// The number of events that each rank keeps; older ones are overwritten. A call has one event, and two for each of
  /// its exchanges, of 40 bytes each.
  std::int64_t events = 4096;
  /// If not empty, a rank that fails writes `<file_on_failure>.<rank>.json` and `.txt`.
  std::string file_on_failure{};
  /// If not null, a rank that fails writes its text here. Ranks of one process write one after the other.
  std::ostream* stream_on_failure = nullptr;
};

/// The options as their designated initialiser, without what has its default: "{.file_on_failure = "trace"}". Of a
/// stream it has no more than that there is one.
[[nodiscard]] inline std::string to_string(const trace_options& o) {
  const trace_options defaults;
  detail::initializer_text text;
  text.member("events", o.events, defaults.events)
      .member("file_on_failure", o.file_on_failure, defaults.file_on_failure);
  if (o.stream_on_failure != nullptr) text.member("stream_on_failure", detail::initializer_text::code{"/* one */"});
  return text.text();
}

/// Adaptor with a flight recorder: each rank keeps its last events with their times. A failure writes them down. They
/// can also be drawn as a timeline of what was measured at any other time.
///
///     orrery::traced recorder{world, {.file_on_failure = "trace"}};
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{recorder, shape};
///     attend.forward(...);                   // on failure: trace.0.json, trace.0.txt, ...
///     recorder.write_timeline("all.json");  // all ranks, for https://ui.perfetto.dev
///
/// `jq -s '{traceEvents: map(.traceEvents) | add}' trace.*.json` joins the files of several ranks. Times count from the
/// construction, in which all ranks meet. Ranks on one machine share its clock. The clocks of different machines agree
/// up to the difference with which they left that meeting (some 0.1 ms).
///
/// Costs two reads of the clock for each event. Memory is allocated at construction and when a plan is made; calls
/// allocate nothing. The time between two events is drawn as `compute`: packing, tiles and merges. Can wrap and be
/// wrapped by other adaptors: `traced` outside of `faulty` shows the faults.
template <transport World>
class traced : public transport_adaptor<World, traced<World>> {
  using clock = std::chrono::steady_clock;
  enum class kind : std::uint8_t { begin, post, await };

  struct event {
    std::int64_t start;  // nanoseconds of the clock
    std::int64_t end;
    kind type;
    bool failed;
    int plan;
    int call;
    int exchange;
  };

  struct recording {
    trace_options options;
    int rank = 0;
    std::int64_t origin = 0;
    std::vector<event> ring;
    std::int64_t recorded = 0;
    std::vector<schedule::program> plans;
    std::vector<std::vector<std::int64_t>> bytes;  // by plan and exchange: the bytes sent
    int calls = 0;
    std::string failure;
    std::int64_t failed_at = 0;

    [[nodiscard]] static std::int64_t now() {
      return std::chrono::duration_cast<std::chrono::nanoseconds>(clock::now().time_since_epoch()).count();
    }

    void record(const event& event) {
      ring[static_cast<std::size_t>(recorded % static_cast<std::int64_t>(ring.size()))] = event;
      ++recorded;
    }

    /// Calls `work()` and records it. `measured` is the event without its times.
    template <class Work>
    void measure(event measured, const Work& work) {
      measured.start = now();
      try {
        work();
      } catch (const std::exception& e) {
        measured.failed = true;
        measured.end = now();
        record(measured);
        fail(e.what());
        throw;
      }
      measured.end = now();
      record(measured);
    }

    /// Calls `work()` and counts its time to the last recorded event.
    template <class Work>
    void prolong(const Work& work) {
      if (recorded == 0) return work();  // reset meanwhile
      event& last = ring[static_cast<std::size_t>((recorded - 1) % static_cast<std::int64_t>(ring.size()))];
      try {
        work();
      } catch (const std::exception& e) {
        last.failed = true;
        last.end = now();
        fail(e.what());
        throw;
      }
      last.end = now();
    }

    /// Writes down the events at the first failure. Errors in writing are ignored, since the failure itself is about to
    /// be thrown.
    void fail(const std::string& why) noexcept {
      try {
        if (!failure.empty()) return;
        failure = why.empty() ? "failed" : why;
        failed_at = now();
        if (!options.file_on_failure.empty()) {
          const std::string name = options.file_on_failure + "." + std::to_string(rank);
          const std::string local = events();
          std::ofstream{name + ".json"} << timeline::document({&local, 1});
          std::ofstream{name + ".txt"} << text();
        }
        if (options.stream_on_failure != nullptr) {
          static std::mutex& mutex =
              *new std::mutex;  // never destroyed, since operators may be destroyed after statics
          const std::lock_guard lock{mutex};
          *options.stream_on_failure << text() << std::flush;
        }
      } catch (...) {  // the failure itself is about to be thrown
      }
    }

    /// Calls visit(event) from the oldest kept event to the newest.
    template <class Visit>
    void each(const Visit& visit) const {
      const auto size = static_cast<std::int64_t>(ring.size());
      for (std::int64_t i = (std::max)(recorded - size, std::int64_t{0}); i < recorded; ++i) {
        visit(ring[static_cast<std::size_t>(i % size)]);
      }
    }

    [[nodiscard]] const schedule::program& plan_of(const event& e) const {
      return plans[static_cast<std::size_t>(e.plan)];
    }
    [[nodiscard]] int step_of(const event& e) const {
      if (e.type == kind::begin) return 0;
      const schedule::exchange& x = plan_of(e).exchanges[e.exchange];
      return e.type == kind::post ? x.posted : x.complete_before;
    }
    /// Describes the messages of an event: "key shard 1 from rank 2, key shard 0 to rank 1".
    [[nodiscard]] std::string message_of(const event& e) const {
      const schedule::program& p = plan_of(e);
      const schedule::exchange& x = p.exchanges[e.exchange];
      std::string text;
      if (x.received.count > 0) {
        text = detail::describe_message(p, e.exchange, detail::direction::receiving) + " from rank " +
               std::to_string(x.from);
      }
      if (x.sent.count > 0) {
        text += (text.empty() ? "" : ", ") + detail::describe_message(p, e.exchange, detail::direction::sending) +
                " to rank " + std::to_string(x.to);
      }
      return text;
    }
    [[nodiscard]] timeline::details details_of(const event& e) const {
      timeline::details more{
          {"call", std::to_string(e.call)}, {"pass", name_of(plan_of(e).pass)}, {"step", std::to_string(step_of(e))}};
      if (e.type != kind::begin) {
        const std::int64_t sent = bytes[static_cast<std::size_t>(e.plan)][static_cast<std::size_t>(e.exchange)];
        more.emplace_back("exchange", std::to_string(e.exchange));
        more.emplace_back("bytes sent", std::to_string(sent));
      }
      if (e.failed) more.emplace_back("failed", failure);
      return more;
    }

    [[nodiscard]] std::string events() const {
      timeline drawn;
      drawn.begin_rank(rank);
      std::vector<event> in_flight;
      const event* before = nullptr;
      const auto draw_in_flight = [&](const event& posted, std::int64_t end) {
        const schedule::exchange& x = plan_of(posted).exchanges[posted.exchange];
        drawn.flight(x.lane, message_of(posted), posted.start - origin, end - origin, details_of(posted));
      };
      each([&](const event& e) {
        if (before != nullptr && e.type != kind::begin && e.start > before->end) {
          drawn.slice("compute", "step " + std::to_string(step_of(*before)), before->end - origin, e.start - origin,
                      details_of(*before));
        }
        before = &e;
        if (e.type == kind::begin) {
          drawn.slice("begin", "begin " + std::string{name_of(plan_of(e).pass)}, e.start - origin, e.end - origin,
                      details_of(e));
        } else if (e.type == kind::post) {
          in_flight.push_back(e);
          drawn.slice("post", "post " + message_of(e), e.start - origin, e.end - origin, details_of(e));
        } else {
          const auto posted = std::find_if(in_flight.begin(), in_flight.end(), [&](const event& other) {
            return other.call == e.call && other.exchange == e.exchange;
          });
          if (posted != in_flight.end()) {
            draw_in_flight(*posted, e.end);
            in_flight.erase(posted);
          }
          drawn.slice("wait", "wait for " + message_of(e), e.start - origin, e.end - origin, details_of(e));
        }
      });
      for (const event& posted : in_flight) draw_in_flight(posted, failure.empty() ? before->end : failed_at);
      if (!failure.empty()) drawn.mark(failure, failed_at - origin);
      return drawn.events();
    }

    [[nodiscard]] std::string text() const {
      std::string all = "rank " + std::to_string(rank) + ": start (ms), duration (ms), call, step\n";
      if (recorded > static_cast<std::int64_t>(ring.size())) {
        all += "  (" + std::to_string(recorded - static_cast<std::int64_t>(ring.size())) + " earlier events)\n";
      }
      const auto milliseconds = [](std::int64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e6; };
      each([&](const event& e) {
        char numbers[80];
        std::snprintf(numbers, sizeof numbers, "%14.3f %10.3f %4d %4d  ", milliseconds(e.start - origin),
                      milliseconds(e.end - e.start), e.call, step_of(e));
        all += numbers;
        if (e.type == kind::begin) {
          all += "begin " + std::string{name_of(plan_of(e).pass)};
        } else {
          all += (e.type == kind::post ? "post " : "wait for ") + message_of(e);
        }
        all += e.failed ? "  <- failed here\n" : "\n";
      });
      if (!failure.empty()) {
        char number[40];
        std::snprintf(number, sizeof number, "%14.3f", milliseconds(failed_at - origin));
        all += number + std::string{" "} + failure + "\n";
      }
      return all;
    }
  };

 public:
  /// Collective. Throws `std::invalid_argument` for fewer than one event.
  // NOLINTNEXTLINE(performance-unnecessary-value-param): the options are moved from
  explicit traced(World& world, trace_options options = {})
      : transport_adaptor<World, traced<World>>{world}, recording_{std::make_shared<recording>()} {
    if (options.events < 1) {
      throw std::invalid_argument{"orrery: traced: events is " + std::to_string(options.events) +
                                  ", expected at least 1"};
    }
    recording_->rank = world.rank();
    try {
      recording_->ring.resize(static_cast<std::size_t>(options.events));
    } catch (const std::exception&) {
      throw std::invalid_argument{"orrery: traced: events is " + std::to_string(options.events) +
                                  ", for which there is not enough memory"};
    }
    recording_->options = std::move(options);

    // Ranks with the same boot id share the clock of one machine. A rank without a boot id uses its own clock.
    std::string machine;
    std::getline(std::ifstream{"/proc/sys/kernel/random/boot_id"}, machine);
    static_cast<void>(detail::all_gather_as(world, "", detail::collective_call::recorder));
    recording_->origin = recording::now();
    const std::string local = machine + " ";
    for (const std::string& other :
         detail::all_gather_as(world, local + std::to_string(recording_->origin), detail::collective_call::recorder)) {
      if (machine.empty() || other.compare(0, local.size(), local) != 0) continue;
      if (!detail::peer_text{other}.skip(local).number(recording_->origin).ended()) {
        throw transport_error{"orrery: traced: a rank gives \"" + other +
                              "\" where all say their clocks: let all ranks make the same calls, in one order"};
      }
      break;
    }
  }

  /// Wraps every collective member: if it throws, writes down the events.
  template <class Call>
  decltype(auto) collective(const Call& call) {
    try {
      return call();
    } catch (const std::exception& e) {
      recording_->fail(e.what());
      throw;
    }
  }

  void abandon(const std::string& why) requires detail::abandonable<World> {
    this->world().abandon(why);
    recording_->fail("failed " + why);
  }

  class channel : public channel_adaptor<detail::channel_of<World>> {
    using inner = channel_adaptor<detail::channel_of<World>>;

   public:
    channel(detail::channel_of<World> below, std::shared_ptr<recording> to, int plan)
        : inner{std::move(below)}, recording_{std::move(to)}, plan_{plan} {}

    void begin() {
      call_ = recording_->calls++;
      recording_->measure(event_of(kind::begin, 0), [&] { inner::begin(); });
    }
    void post(int exchange) {
      recording_->measure(event_of(kind::post, exchange), [&] { inner::post(exchange); });
    }
    void posted() requires detail::batching<detail::channel_of<World>> {
      recording_->prolong([&] { inner::posted(); });
    }
    void await(int exchange) {
      recording_->measure(event_of(kind::await, exchange), [&] { inner::await(exchange); });
    }
    void abandon(const std::string& why) requires detail::abandonable<detail::channel_of<World>> {
      inner::abandon(why);
      recording_->fail("failed " + why);
    }

   private:
    [[nodiscard]] event event_of(kind type, int exchange) const { return {0, 0, type, false, plan_, call_, exchange}; }

    std::shared_ptr<recording> recording_;
    int plan_;
    int call_ = 0;
  };

  [[nodiscard]] channel open(const schedule::program& p, std::vector<exchange_pieces> pieces) {
    const auto plan = static_cast<int>(recording_->plans.size());
    recording_->plans.push_back(p);
    std::vector<std::int64_t>& bytes = recording_->bytes.emplace_back();
    for (const exchange_pieces& of_exchange : pieces) {
      std::int64_t sum = 0;
      for (const piece& part : of_exchange.sent) sum += part.bytes;
      bytes.push_back(sum);
    }
    return collective([&] { return channel{this->world().open(p, std::move(pieces)), recording_, plan}; });
  }

  /// Writes this rank's events in the Chrome trace format (see `timeline`). Not collective.
  void write_json(std::ostream& to) const {
    const std::string local = recording_->events();
    to << timeline::document({&local, 1});
  }
  /// Writes this rank's events as text, one event in each line. Not collective.
  void write_text(std::ostream& to) const { to << recording_->text(); }

  /// Writes the events of all ranks in the Chrome trace format, on rank 0. Collective.
  void write_timeline(std::ostream& to) {
    const std::vector<std::string> of_all = gather_events();
    if (this->rank() == 0) to << timeline::document(of_all);
  }
  /// Writes them to a file. Rank 0 throws `std::runtime_error` if it cannot be written.
  void write_timeline(const std::string& path) {
    const std::vector<std::string> of_all = gather_events();
    if (this->rank() != 0) return;
    std::ofstream file{path};
    if (!(file << timeline::document(of_all) << std::flush)) {
      throw std::runtime_error{"orrery: traced: the timeline could not be written to " + path};
    }
  }

  /// Forgets all events.
  void reset() noexcept { recording_->recorded = 0; }

 private:
  [[nodiscard]] std::vector<std::string> gather_events() {
    return collective(
        [&] { return detail::all_gather_as(this->world(), recording_->events(), detail::collective_call::recorder); });
  }

  std::shared_ptr<recording> recording_;
};

}  // namespace orrery
