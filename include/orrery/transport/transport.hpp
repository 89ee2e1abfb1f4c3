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
#include "orrery/transport/detail/describe.hpp"

namespace orrery {

/// Communication failed: a peer did not come in time, left or failed. The message names the rank that failed first,
/// what this rank waited for (step, block and peer), and says whether the world can still be used, as `usable()` does.
struct transport_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Contiguous memory of the transport's kind (of the host, of a device).
struct piece {
  std::byte* data = nullptr;
  std::int64_t bytes = 0;
};

/// Where an exchange's blocks lie, one piece for each block, in the order of the program. Fixed when the plan is made.
struct exchange_pieces {
  std::vector<piece> sent;
  std::vector<piece> received;
};

/// One end of a plan: what an executor gets from `open`.
///
/// `begin` starts a call. `post(e)` starts the program's exchange e, `await(e)` lets what follows be ordered after its
/// completion: on a host by waiting, on a device by enqueuing. Neither allocates. Each exchange is posted and awaited
/// once in a call, in the order of the program. `context()` is what kernels are called with.
///
/// A channel may also have `posted()`, which is called after exchanges that were posted one right after the other, so
/// that it can begin them together.
///
/// A channel may also have `abandon(why)`: this rank leaves the call in the middle (its kernel has thrown), so that the
/// others fail at once, with its name, instead of at their deadline. It does not throw.
template <class Channel>
concept transport_channel = requires(Channel& channel, int exchange) {
  channel.begin();
  channel.post(exchange);
  channel.await(exchange);
  channel.context();
};

/// One rank's view of a world of ranks. All members but `rank`, `size` and `usable` are collective: all ranks call
/// them, in one order. If ranks meet in different calls, all of them throw `transport_error`, which says who calls
/// what.
///
/// - `barrier()` returns when all ranks have called it.
/// - `all_gather(text)` returns the texts of all ranks. For plan time only: it may allocate.
/// - `all_reduce_sum(values)` replaces the values, in the memory of the host, by the sums of the values of all ranks,
///   added in the order of the ranks: every rank gets the same bits. Throws `std::invalid_argument` on every rank if
///   they do not give equally many values of one type.
/// - `open(program, pieces)` prepares a plan and returns its channel; the pieces (one entry for each exchange of the
///   program) stay where they are until the channel is gone.
/// - `usable()` is false after a failure. From then on every collective member throws the same message again, at once.
/// - `memory` is where the plan's buffers live: constructed with a number of bytes, aligned to 64, it has `data()`.
///
/// A world may also have
///
/// - `all_gather(text, call)`: the same for a call that is compared as another `collective_call`, so that a text of an
///   operator's construction is not taken for one of the trainer's;
/// - `abandon(why)`: this rank gives up ("rank 2 failed " and `why`), so that the others fail at once, with its name.
///   Not collective. It does not throw.
///
/// An adaptor derives from `transport_adaptor`, which forwards all of these.
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

/// What `open` returns.
template <transport World>
using channel_of = decltype(std::declval<World&>().open({}, {}));

/// Does a channel want to know when it has been given all that is to be posted now?
template <class Channel>
concept batching = requires(Channel& channel) {
  channel.posted();
};

/// Can a rank that leaves a call in the middle say so to the others? Of channels and worlds.
template <class Channel>
concept abandonable = requires(Channel& channel, const std::string& why) {
  channel.abandon(why);
};

/// Does a world compare a gathering of texts as the collective call that it is part of?
template <class World>
concept naming_calls = requires(World& world, const std::string& text, collective_call call) {
  { world.all_gather(text, call) } -> std::same_as<std::vector<std::string>>;
};

/// `all_gather` as part of another collective call, if the world can name it.
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

/// What all ranks throw, with the same message, because they do not say the same (see `require_agreement`): the world
/// can still be used.
struct disagreement : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// Call in a handler of an exception that ends a part of a collective construction. Unless all ranks throw it alike
/// (`disagreement`, `transport_error`), this rank gives up the world: the others fail at once, with its name and what
/// it has thrown, also if it goes on after the exception.
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

/// One thing that all ranks must say alike.
struct agreement {
  std::string name;
  std::string value;
};

/// The text of a rank's agreements: of each its name, a unit separator, its value and a record separator. Separators in
/// names and values are replaced.
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

/// Reads what `text_of` has written. Returns false for anything else.
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

/// Throws `disagreement` if the ranks' texts, lists of `agreement`s, are not all the same (see `require_agreement`),
/// and `transport_error` if one of them is no such list.
inline void compare_agreements(const std::vector<std::string>& texts) {
  list<list<agreement>> all;
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    if (parse_agreements(texts[rank], *all.extend(1))) continue;
    throw transport_error{
        "orrery: rank " + std::to_string(rank) + " gives a text of " + std::to_string(texts[rank].size()) +
        " bytes that is no list of agreements, so it makes another collective call than "
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
  // As many as the rank that names most.
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

/// Throws `disagreement`, a `std::invalid_argument`, on every rank, with the same message, if ranks do not all say the
/// same: it names the field and who says what. An entry named "error" is a rank's own failure, thrown on all ranks with
/// its rank. Collective.
template <transport World>
void require_agreement(World& world, std::span<const agreement> local) {
  compare_agreements(all_gather_as(world, text_of(local), collective_call::agreement));
}

}  // namespace orrery::detail
