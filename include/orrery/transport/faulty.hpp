// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "orrery/schedule/program.hpp"
#include "orrery/transport/adaptor.hpp"
#include "orrery/transport/detail/collective_signature.hpp"
#include "orrery/transport/detail/deadline.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::faults {

/// The point at which a fault happens: step `step` of call `call`. Calls of all operators of one world are counted
/// together from 0; forward and backward are one call each. The fault happens when the rank next posts or awaits an
/// exchange in that step, or in a later step of the same call.
struct fault_point {
  int call = 0;
  int step = 0;
};

/// Thrown by a rank whose script says so.
struct injected_fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A fault that happens once, on one rank. Made by the functions below.
struct scripted_fault {
  enum class kind : std::uint8_t { stall, stop, failure, action, late, wrong_length, disagreement };

  kind type = kind::stall;
  int rank = 0;
  fault_point when{};
  double seconds = 0;
  int plan = 0;
  int exchange = 0;
  std::string field{};
  std::function<void()> action{};
};

/// The rank sleeps for `seconds`; less if the world fails meanwhile.
[[nodiscard]] inline scripted_fault stalls(int rank, const fault_point& when, double seconds) {
  return {.type = scripted_fault::kind::stall, .rank = rank, .when = when, .seconds = seconds};
}
/// The rank sleeps until the world has failed. Throws `injected_fault` if nobody has noticed after `seconds`.
[[nodiscard]] inline scripted_fault stops(int rank, const fault_point& when, double seconds = 60) {
  return {.type = scripted_fault::kind::stop, .rank = rank, .when = when, .seconds = seconds};
}
/// The rank throws `injected_fault`.
[[nodiscard]] inline scripted_fault fails(int rank, const fault_point& when) {
  return {.type = scripted_fault::kind::failure, .rank = rank, .when = when};
}
/// Calls `action` on the rank, which may raise a signal, wait for an event or change memory.
[[nodiscard]] inline scripted_fault acts(int rank, const fault_point& when, std::function<void()> action) {
  return {.type = scripted_fault::kind::action, .rank = rank, .when = when, .action = std::move(action)};
}
/// The rank reaches its first collective call (the construction of an operator begins with one) `seconds` late; at once
/// when the world fails.
[[nodiscard]] inline scripted_fault arrives_late(int rank, double seconds) {
  return {.type = scripted_fault::kind::late, .rank = rank, .seconds = seconds};
}
/// The rank sends one byte less in an exchange than its peer expects. Plans are counted from 0 in the order in which
/// they are opened; an attention operator opens its forward's, then its backward's.
[[nodiscard]] inline scripted_fault sends_wrong_length(int rank, int exchange, int plan = 0) {
  return {.type = scripted_fault::kind::wrong_length, .rank = rank, .plan = plan, .exchange = exchange};
}
/// The rank reports a wrong value of a field that must be the same on all ranks: "length", "mask", "head_dim", ...
[[nodiscard]] inline scripted_fault disagrees(int rank, std::string field) {
  return {.type = scripted_fault::kind::disagreement, .rank = rank, .field = std::move(field)};
}

}  // namespace orrery::faults

namespace orrery {

/// Adaptor that injects faults as a script says, to test that errors end in a message.
///
///     orrery::faulty unlucky{world, {orrery::faults::stops(2, {.call = 1, .step = 3})}};
///     orrery::attention<orrery::ring, orrery::flash<float>> attend{unlucky, shape};
///     attend.forward(...);   // succeeds
///     attend.backward(...);  // rank 2 stops in step 3; the others throw after the deadline
///
/// All ranks may have the same script: each executes the faults with its own rank. Can wrap and be wrapped by other
/// adaptors. Without a fault it costs one comparison for each post and await. For tests: a sleeping rank polls
/// `usable()` of the world every millisecond.
template <transport World>
class faulty : public transport_adaptor<World, faulty<World>> {
  using base = transport_adaptor<World, faulty<World>>;

  struct script {
    World* world;
    std::vector<faults::scripted_fault> pending;  // of this rank; removed when they happen
    int call = -1;
    int plans = 0;

    /// Removes and returns the first fault for which `due(fault)`; a stall of 0 s if there is none.
    template <class Due>
    [[nodiscard]] faults::scripted_fault take(const Due& due) {
      for (std::size_t i = 0; i < pending.size(); ++i) {
        if (!due(pending[i])) continue;
        faults::scripted_fault found = std::move(pending[i]);
        pending.erase(pending.begin() + static_cast<std::ptrdiff_t>(i));
        return found;
      }
      return {};
    }

    /// Sleeps. Returns false if the world has not failed by then.
    bool sleep(double seconds) const {
      const auto end = detail::deadline_in(seconds);
      while (std::chrono::steady_clock::now() < end) {
        if (!world->usable()) return true;
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
      }
      return false;
    }

    void inject(int step) {
      if (pending.empty()) return;
      using kind = faults::scripted_fault::kind;
      const faults::scripted_fault now = take([&](const faults::scripted_fault& f) {
        return f.type <= kind::action && f.when.call == call && f.when.step <= step;
      });
      const auto where = [&] {
        return "rank " + std::to_string(now.rank) + " in step " + std::to_string(step) + " of call " +
               std::to_string(call);
      };
      if (now.type == kind::failure) throw faults::injected_fault{where() + " fails, as its script says"};
      if (now.type == kind::action) return now.action();
      if (sleep(now.seconds)) {
        static_cast<void>(world->all_gather(""));  // throws the world's message
      } else if (now.type == kind::stop) {
        throw faults::injected_fault{where() + " has stopped, and nobody has noticed for " +
                                     detail::describe_seconds(now.seconds)};
      }
    }

    void delay_arrival() {
      const faults::scripted_fault now =
          take([](const faults::scripted_fault& f) { return f.type == faults::scripted_fault::kind::late; });
      if (now.seconds > 0) sleep(now.seconds);
    }
  };

 public:
  faulty(World& world, std::vector<faults::scripted_fault> faults) : base{world}, script_{std::make_shared<script>()} {
    script_->world = &world;
    for (faults::scripted_fault& fault : faults) {
      if (fault.rank == world.rank()) script_->pending.push_back(std::move(fault));
    }
  }

  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text) { return base::all_gather(changed(text)); }
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& text,
                                                    detail::collective_call call) requires detail::naming_calls<World> {
    return base::all_gather(changed(text), call);
  }

  /// Wraps every collective member.
  template <class Call>
  decltype(auto) collective(const Call& call) {
    script_->delay_arrival();
    return call();
  }

  class channel : public channel_adaptor<detail::channel_of<World>> {
    using inner = channel_adaptor<detail::channel_of<World>>;

   public:
    channel(detail::channel_of<World> below, std::shared_ptr<script> faults, const schedule::program& p)
        : inner{std::move(below)}, script_{std::move(faults)} {
      for (const schedule::exchange& x : p.exchanges) steps_.emplace_back(x.posted, x.complete_before);
    }

    void begin() {
      ++script_->call;
      inner::begin();
    }
    void post(int exchange) {
      script_->inject(steps_[static_cast<std::size_t>(exchange)].first);
      inner::post(exchange);
    }
    void await(int exchange) {
      script_->inject(steps_[static_cast<std::size_t>(exchange)].second);
      inner::await(exchange);
    }

   private:
    std::shared_ptr<script> script_;
    std::vector<std::pair<int, int>> steps_;  // in which each exchange is posted and awaited
  };

  /// Throws `std::invalid_argument`, on this rank, if the exchange of `sends_wrong_length` sends nothing.
  [[nodiscard]] channel open(const schedule::program& p, std::vector<exchange_pieces> pieces) {
    script_->delay_arrival();
    const int plan = script_->plans++;
    const faults::scripted_fault now = script_->take([&](const faults::scripted_fault& f) {
      return f.type == faults::scripted_fault::kind::wrong_length && f.plan == plan;
    });
    if (now.type == faults::scripted_fault::kind::wrong_length) shorten(pieces, now.exchange);
    return {this->world().open(p, std::move(pieces)), script_, p};
  }

 private:
  /// Returns a text of `require_agreement`, with the value changed if the script says so.
  [[nodiscard]] std::string changed(const std::string& text) {
    const auto place = [&](const faults::scripted_fault& f) {
      const std::size_t found = ('\x1e' + text).find('\x1e' + f.field + '\x1f');
      return found == std::string::npos ? found : found + f.field.size() + 1;
    };
    const faults::scripted_fault now = script_->take([&](const faults::scripted_fault& f) {
      return f.type == faults::scripted_fault::kind::disagreement && place(f) != std::string::npos;
    });
    std::string changed_text = text;
    if (now.type == faults::scripted_fault::kind::disagreement) changed_text.insert(place(now), "not ");
    return changed_text;
  }

  static void shorten(std::vector<exchange_pieces>& pieces, int exchange) {
    if (exchange >= 0 && static_cast<std::size_t>(exchange) < pieces.size()) {
      for (piece& part : pieces[static_cast<std::size_t>(exchange)].sent) {
        if (part.bytes == 0) continue;
        --part.bytes;
        return;
      }
    }
    throw std::invalid_argument{"orrery: faulty: exchange " + std::to_string(exchange) +
                                " of this plan sends nothing; choose one that does"};
  }

  std::shared_ptr<script> script_;
};

}  // namespace orrery
