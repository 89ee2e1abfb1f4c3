// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "orrery/schedule/list.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/describe.hpp"

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

/// One rank's view of a world of ranks. All members but `rank` and `size` are collective: all ranks call them, in one
/// order.
///
/// - `open(program, pieces)` prepares a plan and returns its channel; the pieces (one entry for each exchange of the
///   program) stay where they are until the channel is gone.
/// - `all_gather(text)` returns the texts of all ranks. For plan time only: it may allocate.
/// - `memory` is where the plan's buffers live: constructed with a number of bytes, aligned to 64, it has `data()`.
///
/// Worlds also have `usable()`: false after a failure. From then on every collective member throws the same sentence
/// again, at once.
template <class World>
concept transport = requires(World& world, const program& p, std::vector<exchange_pieces> pieces,
                             const std::string& text) {
  { world.rank() } -> std::convertible_to<int>;
  { world.size() } -> std::convertible_to<int>;
  { world.all_gather(text) } -> std::same_as<std::vector<std::string>>;
  { world.open(p, pieces) } -> transport_channel;
  typename World::memory;
};

/// What `open` returns.
template <transport World>
using channel_of = decltype(std::declval<World&>().open({}, {}));

/// Does a channel want to know when it has been given all that is to be posted now?
template <class Channel>
concept batching = requires(Channel& channel) {
  channel.posted();
};

/// Can a rank that leaves a call in the middle say so to the others?
template <class Channel>
concept abandonable = requires(Channel& channel, const std::string& why) {
  channel.abandon(why);
};

/// One thing that all ranks must say alike.
struct agreement {
  std::string name;
  std::string value;
};

/// Throws if the ranks' texts, lists of `agreement`s, are not all the same (see `require_agreement`).
inline void compare_agreements(const std::vector<std::string>& texts) {
  list<list<agreement>> all;
  for (const std::string& from : texts) {
    list<agreement>& fields = *all.extend(1);
    for (std::size_t at = 0; at < from.size();) {
      const std::size_t middle = from.find('\x1f', at);
      const std::size_t end = from.find('\x1e', at);
      fields.push_back({from.substr(at, middle - at), from.substr(middle + 1, end - middle - 1)});
      at = end + 1;
    }
  }
  for (int rank = 0; rank < all.size(); ++rank) {
    for (const agreement& field : all[rank]) {
      if (field.name == "error" && !field.value.empty()) {
        throw std::invalid_argument{"orrery: rank " + std::to_string(rank) + ": " + field.value};
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
      throw std::invalid_argument{"orrery: ranks disagree about " + name + ":" + groups + "; give all ranks the same"};
    }
  }
}

/// Throws `std::invalid_argument` on every rank, with the same sentence, if ranks do not all say the same: it names the
/// field and who says what. An entry named "error" is a rank's own failure, thrown on all ranks with its rank.
/// Collective.
template <transport World>
void require_agreement(World& world, std::span<const agreement> mine) {
  std::string text;
  for (const agreement& field : mine) text += field.name + '\x1f' + field.value + '\x1e';
  compare_agreements(world.all_gather(text));
}

}  // namespace orrery
