// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What `counted` counts; that an operator's bytes are right is shown in attention/traffic.cpp.
#include "orrery/transport/counted.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/schedule/builder.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/transport/threads.hpp"

namespace {

/// Rank 0 sends its key shard and its query shard in one message and gets nothing.
orrery::program gift(int rank) {
  orrery::builder schedule{rank, 2};
  schedule.begin_exchange(rank == 0 ? 1 : orrery::schedule::no_rank, rank == 1 ? 0 : orrery::schedule::no_rank);
  schedule.send(orrery::key(0));
  schedule.send(orrery::query(0));
  schedule.receive(orrery::key(0));
  schedule.receive(orrery::query(0));
  orrery::program p = schedule;
  orrery::schedule::finish(p);
  return p;
}

/// The key shard has 5 bytes, the query shard 3; or both are empty.
std::vector<orrery::exchange_pieces> pieces(int rank, std::byte* memory, bool empty = false) {
  std::vector<orrery::piece> both{{memory, empty ? 0 : 5}, {memory + 5, empty ? 0 : 3}};
  if (rank == 0) return {{both, {}}};
  return {{{}, both}};
}

void require(bool condition, const char* what) {
  if (!condition) throw std::logic_error{what};
}

}  // namespace

TEST_CASE("bytes and messages are those that this rank sends, in all of its plans, until reset") {
  CHECK_NOTHROW(orrery::threads::run(2, [](auto& on) {
    orrery::counted counting{on};
    std::array<std::byte, 8> memory{};
    auto first = counting.open(gift(on.rank()), pieces(on.rank(), memory.data()));
    auto second = counting.open(gift(on.rank()), pieces(on.rank(), memory.data()));
    const auto call = [](auto& channel) {
      channel.begin();
      channel.post(0);
      channel.await(0);
    };
    require(counting.bytes_sent() == 0 && counting.messages_sent() == 0, "nothing was sent yet");
    const int sender = on.rank() == 0 ? 1 : 0;
    call(first);
    require(counting.bytes_sent() == 8 * sender && counting.messages_sent() == sender, "one call");
    require(counting.bytes_received() == 8 * (1 - sender) && counting.messages_received() == 1 - sender, "received");
    call(second);
    call(second);
    require(counting.bytes_sent() == 24 * sender && counting.messages_sent() == 3 * sender, "three calls");
    counting.reset();
    require(counting.bytes_sent() == 0 && counting.messages_sent() == 0, "reset");
    require(counting.bytes_received() == 0 && counting.messages_received() == 0, "reset of what was received");
    call(first);
    require(counting.bytes_sent() == 8 * sender && counting.messages_sent() == sender, "after the reset");
  }));
}

TEST_CASE("a message of empty shards is a message of 0 bytes") {
  CHECK_NOTHROW(orrery::threads::run(2, [](auto& on) {
    orrery::counted counting{on};
    std::array<std::byte, 8> memory{};
    auto channel = counting.open(gift(on.rank()), pieces(on.rank(), memory.data(), true));
    for (int call = 1; call <= 2; ++call) {
      channel.begin();
      channel.post(0);
      channel.await(0);
      require(counting.bytes_sent() == 0, "bytes");
      require(counting.messages_sent() == (on.rank() == 0 ? call : 0), "messages");
    }
  }));
}

TEST_CASE("everything else is forwarded to the world") {
  CHECK_NOTHROW(orrery::threads::run(3, {.threads_per_rank = 2}, [](auto& on) {
    orrery::counted counting{on};
    require(counting.rank() == on.rank() && counting.size() == 3, "rank and size");
    counting.barrier();
    const std::string name = std::to_string(counting.rank());
    require(counting.all_gather(name) == std::vector<std::string>{"0", "1", "2"}, "all_gather");
    std::array<int, 2> values{on.rank(), 10};
    counting.all_reduce_sum(std::span<int>{values});
    require(values == std::array<int, 2>{3, 30}, "all_reduce_sum");
    require(counting.bytes_sent() == 0, "collectives are not counted");
    orrery::program idle = orrery::builder{on.rank(), 3};
    require(counting.open(idle, {}).context().threads() == 2, "context");
  }));
}
