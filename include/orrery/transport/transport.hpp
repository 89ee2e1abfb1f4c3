// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/detail/collective_signature.hpp"

namespace orrery {

/// Thrown when communication fails: a peer missed the deadline, left or failed. The message names the rank that failed
/// first, what this rank waited for (step, block and peer), and whether the world can still be used (see `usable()`).
struct transport_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Contiguous memory, on the host or on a device, as the transport requires.
struct piece {
  std::byte* data = nullptr;
  std::int64_t bytes = 0;
};

/// The memory of an exchange's blocks: one piece for each block, in the order of the program. Fixed when the plan is
/// made.
struct exchange_pieces {
  std::vector<piece> sent;
  std::vector<piece> received;
};

/// A part of a call that channels may observe.
enum class call_part : std::uint8_t { step, tile };

/// One rank's end of a plan, as `open` returns it.
///
/// `begin()` starts a call. `post(e)` starts exchange e of the program. `await(e)` completes it: a host transport
/// waits, a device transport enqueues the wait, so that whatever follows is ordered after the exchange. Each exchange
/// is posted and awaited once in a call, in the order of the program. Neither allocates. `context()` returns what
/// kernels are called with.
///
/// Optional members:
///
/// - `posted()` is called after one or more consecutive posts, so that the channel can start them together.
/// - `abandon(why)` reports that this rank leaves the call before its end, for example because its kernel threw. The
///   other ranks then fail at once, with this rank's name, instead of at their deadline. Does not throw.
/// - `enter(part, step)`, `leave()` and `ended()` tell where a call is: a step or its tile begins, the last one that
///   began ends, and the call has ended, returned or thrown. What follows the program's last step counts as a step
///   more. An exception leaves what was entered. None of them throws.
template <class Channel>
concept transport_channel = requires(Channel& channel, int exchange) {
  channel.begin();
  channel.post(exchange);
  channel.await(exchange);
  channel.context();
};

/// One rank's handle to a world of ranks (compare a communicator of MPI or NCCL). All members but `rank`, `size` and
/// `usable` are collective: all ranks call them, in the same order. If ranks meet in different calls, all of them throw
/// `transport_error`, which says who calls what.
///
/// - `barrier()` returns when all ranks have called it.
/// - `all_gather(text)` returns the texts of all ranks. Used when plans are made only: it may allocate.
/// - `all_reduce_sum(values)` replaces the values, in host memory, by their sums over all ranks. The sums are added in
///   the order of the ranks, so every rank gets the same bits. Throws `std::invalid_argument` on every rank if ranks
///   pass different counts or types.
/// - `open(program, pieces)` prepares a plan and returns its channel. `pieces` has one entry for each exchange of the
///   program; the memory must outlive the channel.
/// - `usable()` is false after a failure. From then on every collective member throws the same message again, at once.
/// - `memory` is the type of the plan's buffers: constructed with a number of bytes, aligned to 64, with a member
///   `data()`.
///
/// Optional members:
///
/// - `all_gather(text, call)`: as above, for a call that is compared as another `collective_call`. So a text of an
///   operator's construction is not mistaken for one of the trainer's.
/// - `abandon(why)`: this rank gives up. The others fail at once with "rank 2 failed " and `why`. Not collective. Does
///   not throw.
///
/// Adaptors derive from `transport_adaptor`, which forwards all of these.
template <class World>
concept transport = requires(World& world, const schedule::program& p, std::vector<exchange_pieces> pieces,
                             const std::string& text, std::span<double> values) {
  { world.rank() } -> std::convertible_to<int>;
  { world.size() } -> std::convertible_to<int>;
  { world.usable() } -> std::convertible_to<bool>;
  world.barrier();
  world.all_reduce_sum(values);
  { world.all_gather(text) } -> std::same_as<std::vector<std::string>>;
  { world.open(p, pieces) } -> transport_channel;
  typename World::memory;
};

}  // namespace orrery

namespace orrery::detail {

/// The type that `open` returns.
template <transport World>
using channel_of = decltype(std::declval<World&>().open({}, {}));

/// A channel with `posted()`: it starts consecutive posts together.
template <class Channel>
concept batching = requires(Channel& channel) {
  channel.posted();
};

/// A channel or world with `abandon()`: a rank that leaves a call early can tell the others.
template <class Channel>
concept abandonable = requires(Channel& channel, const std::string& why) {
  channel.abandon(why);
};

/// A channel that is told of each part of a call.
template <class Channel>
concept observing = requires(Channel& channel, call_part part, int step) {
  channel.enter(part, step);
  channel.leave();
  channel.ended();
};

/// Tells a channel of a part of a call, if it observes, from construction to destruction.
template <class Channel>
class observed_part {
 public:
  observed_part(Channel& channel, call_part part, int step) noexcept : channel_{channel} {
    if constexpr (observing<Channel>) channel_.enter(part, step);
  }
  observed_part(const observed_part&) = delete;
  observed_part& operator=(const observed_part&) = delete;
  ~observed_part() {
    if constexpr (observing<Channel>) channel_.leave();
  }

 private:
  Channel& channel_;
};

/// A world whose `all_gather` takes the collective call that it is a part of.
template <class World>
concept naming_calls = requires(World& world, const std::string& text, collective_call call) {
  { world.all_gather(text, call) } -> std::same_as<std::vector<std::string>>;
};

/// Gathers texts as a part of the collective call `call`, if the world can distinguish them.
template <transport World>
[[nodiscard]] std::vector<std::string> all_gather_as(World& world, const std::string& text, collective_call call) {
  if constexpr (naming_calls<World>) {
    return world.all_gather(text, call);
  } else {
    return world.all_gather(text);
  }
}

}  // namespace orrery::detail

namespace orrery {

/// Thrown by all ranks, with the same message, if they pass different values where all must pass the same (see
/// `require_agreement`). The world can still be used.
struct disagreement : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// Call this in the handler of an exception that ends a part of a collective construction. Unless the exception is one
/// that all ranks throw (`disagreement`, `transport_error`), this rank gives up the world: the others fail at once,
/// with its name and the exception's message, even if it continues after the exception.
template <class World>
void give_up_on_exception([[maybe_unused]] World& world, [[maybe_unused]] const char* doing) noexcept {
  if constexpr (detail::abandonable<World>) {
    try {
      try {
        throw;
      } catch (const disagreement&) {
      } catch (const transport_error&) {
      } catch (const std::exception& e) {
        world.abandon(std::string{doing} + ": " + e.what());
      } catch (...) {
        world.abandon(doing);
      }
    } catch (...) {  // no memory for the message
      world.abandon(std::string{});
    }
  }
}

}  // namespace orrery

namespace orrery::detail {

/// A named value that must be the same on all ranks.
struct agreement {
  std::string name;
  std::string value;
};

/// Serializes agreements: for each its name, a unit separator, its value and a record separator. Separators inside
/// names and values are replaced by "?".
[[nodiscard]] inline std::string text_of(std::span<const agreement> fields) {
  std::string text;
  const auto add = [&](const std::string& part, char end) {
    for (const char c : part) text += c == '\x1e' || c == '\x1f' ? '?' : c;
    text += end;
  };
  for (const agreement& field : fields) {
    add(field.name, '\x1f');
    add(field.value, '\x1e');
  }
  return text;
}

/// Parses the output of `text_of`. Returns false for anything else.
[[nodiscard]] inline bool parse_agreements(const std::string& text, list<agreement>& fields) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t middle = text.find('\x1f', at);
    const std::size_t end = text.find('\x1e', at);
    if (end == std::string::npos || middle >= end || middle == at) return false;
    if (text.find('\x1f', middle + 1) < end) return false;
    fields.push_back({text.substr(at, middle - at), text.substr(middle + 1, end - middle - 1)});
    at = end + 1;
  }
  return true;
}

/// Compares the ranks' texts, each a list of agreements. Throws `disagreement` if they differ (see
/// `require_agreement`), and `transport_error` if one of them is not such a list.
inline void compare_agreements(const std::vector<std::string>& texts) {
  list<list<agreement>> all;
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    if (parse_agreements(texts[rank], *all.extend(1))) continue;
    throw transport_error{
        "orrery: rank " + std::to_string(rank) + " gives a text of " + std::to_string(texts[rank].size()) +
        " bytes that is not a list of agreements, so it makes another collective call than "
        "require_agreement, which the construction of an operator begins with; let all ranks make the "
        "same calls, in one order"};
  }
  if (texts.empty()) return;
  for (int rank = 0; rank < all.size(); ++rank) {
    for (const agreement& field : all[rank]) {
      if (field.name == "error" && !field.value.empty()) {
        throw disagreement{"orrery: rank " + std::to_string(rank) + ": " + field.value};
      }
    }
  }
  // The longest list: ranks may name different numbers of fields.
  const list<agreement>* fields = &all[0];
  for (const list<agreement>& named : all) fields = named.size() > fields->size() ? &named : fields;
  for (int i = 0; i < fields->size(); ++i) {
    const std::string& name = (*fields)[i].name;
    list<std::string> values;
    for (const list<agreement>& named : all) {
      values.push_back(i < named.size() && named[i].name == name ? named[i].value : "nothing");
    }
    std::string groups;
    bool disagree = false;
    for (int first = 0; first < values.size(); ++first) {
      int rank = 0;
      while (values[rank] != values[first]) ++rank;
      if (rank < first) continue;  // named with that rank
      std::string ranks = std::to_string(first);
      while (++rank < values.size()) {
        if (values[rank] == values[first]) ranks += ", " + std::to_string(rank);
      }
      disagree = disagree || first > 0;
      groups += first > 0 ? "; " : " ";
      groups += (ranks.find(',') == std::string::npos ? "rank " + ranks + " has " : "ranks " + ranks + " have ");
      groups += values[first];
    }
    if (disagree) {
      throw disagreement{"orrery: ranks disagree about " + name + ":" + groups + "; give all ranks the same"};
    }
  }
}

/// Checks that `local` is the same on all ranks. Otherwise throws `disagreement` (a `std::invalid_argument`) on every
/// rank, with the same message: it names the field and who has which value. A field named "error" is a rank's own
/// failure; it is thrown on all ranks, with that rank's number. Collective.
template <transport World>
void require_agreement(World& world, std::span<const agreement> local) {
  compare_agreements(all_gather_as(world, text_of(local), collective_call::agreement));
}

}  // namespace orrery::detail
