// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Ranks that disagree, do not come or fail: every rank throws a message, and none hangs.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/ring.hpp"

#include "support/conformance.hpp"
#include "transport/mpi/main.hpp"

using mpi_test::contains;
using mpi_test::message_of_exception;
using mpi_test::rank;
using mpi_test::ranks;
using kernel = orrery::flash<double>;
using ring = orrery::attention<orrery::ring, kernel>;

// Allocations of this thread: how many there were, and how many more succeed before one fails (negative: all do).
static thread_local long allocations = 0;
static thread_local long successes = -1;

static void* allocate(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  if (successes >= 0 && successes-- == 0) throw std::bad_alloc{};
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* const memory = std::aligned_alloc(alignment, rounded > 0 ? rounded : alignment);
  if (memory == nullptr) throw std::bad_alloc{};
  return memory;
}
[[gnu::noinline]] void* operator new(std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

const orrery::attention_shape shape{.length = 40, .query_heads = 4, .head_dim = 4};

template <class Operator>
void call_forward(Operator& attend) {
  const oracle::problem p = oracle::random_problem<double>(conformance::oracle_shape(shape), 1);
  conformance::rank_tensors<kernel> local{p, attend.query_positions(), attend.key_positions(), {}};
  local.forward(attend);
}

/// A world that works: after every failure another one can be made.
void check_new_world() {
  MPI_Barrier(MPI_COMM_WORLD);
  orrery::mpi::world world{MPI_COMM_WORLD};
  const auto on_mpi = [&](int, auto&& body) { body(world); };
  CHECK(conformance::failures<orrery::ring, kernel, orrery::mpi::world>(on_mpi, ranks(), shape, orrery::causal{},
                                                                        orrery::zigzag{}) == "");
}

/// The message that `message(deadline)` ends with, the first that has all of `parts` on all ranks. Deadlines grow: on
/// a machine that is busy with other things, a rank that has time may answer late.
template <class Message>
std::string message_with(const std::vector<std::string>& parts, const Message& message) {
  std::string said;
  for (const double deadline : {1.0, 4.0, 16.0}) {
    said = message(deadline);
    int right = 1, all_right = 0;
    for (const std::string& part : parts) right = right != 0 && contains(said, part) ? 1 : 0;
    MPI_Allreduce(&right, &all_right, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (all_right != 0) break;
  }
  return said;
}

void sleep_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>{seconds}); }

}  // namespace

TEST_CASE("ranks that disagree") {
  orrery::mpi::world world{MPI_COMM_WORLD};
  orrery::attention_shape local = shape;
  local.length += rank() == ranks() - 1 ? 1 : 0;
  const std::string message = message_of_exception<std::invalid_argument>([&] { const ring attend{world, local}; });
  if (ranks() == 1) {
    CHECK(message == "nothing");
  } else {
    CHECK(contains(message, "ranks disagree about length"));
  }
  const ring attend{world, shape};  // and the world goes on
}

TEST_CASE("a message that its receiver does not expect") {
  if (ranks() == 1) return;
  orrery::mpi::world world{MPI_COMM_WORLD};
  orrery::builder schedule{rank(), ranks()};
  schedule.shift(orrery::key(rank()), +1);
  schedule.next_step();
  const orrery::program p = schedule;
  std::vector<std::byte> memory(64);
  std::vector<orrery::exchange_pieces> pieces(1);
  pieces[0].sent = {{memory.data(), rank() == 0 ? 24 : 16}};
  pieces[0].received = {{memory.data() + 32, 16}};
  const std::string message =
      message_of_exception<orrery::transport_error>([&] { static_cast<void>(world.open(p, pieces)); });
  CHECK(contains(message, "rank 0 sends to rank 1 other messages than that expects"));
  world.barrier();
}

TEST_CASE_TEMPLATE("a rank that never comes", Topology, orrery::ring, orrery::all_gather) {
  if (ranks() == 1) return;
  const int late = ranks() - 1;
  // Whoever is the first to give up: those that wait are asked whom they wait for.
  const std::string cause = "; rank " + std::to_string(late) + " does not answer: it is late, stopped";
  const std::string message = message_with({cause, " in step "}, [&](double deadline) {
    orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = deadline, .collectives = orrery::mpi::collectives::native}};
    orrery::attention<Topology, kernel> attend{world, shape};
    if (rank() == late) sleep_for(2 * deadline);
    const std::string said = message_of_exception<orrery::transport_error>([&] {
      call_forward(attend);
      world.barrier();
      world.barrier();
    });
    // From now on it says nothing else.
    CHECK(message_of_exception<orrery::transport_error>([&] { call_forward(attend); }) == said);
    CHECK(message_of_exception<orrery::transport_error>([&] { world.barrier(); }) == said);
    return said;
  });
  CAPTURE(message);
  CHECK(contains(message, "orrery: rank " + std::to_string(rank()) + " stops: "));
  CHECK(contains(message, " s in step "));
  CHECK(contains(message, "key shard "));
  CHECK(contains(message, cause));
  CHECK(contains(message, "cannot be used any more"));
  check_new_world();
}

TEST_CASE("a rank that never comes to a collective call") {
  if (ranks() == 1) return;
  const std::string cause = " s for all ranks to come to the same collective call; missing: rank 0;";
  const std::string message = message_with({cause}, [](double deadline) {
    orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = deadline}};
    if (rank() == 0) sleep_for(2 * deadline);
    return message_of_exception<orrery::transport_error>([&] {
      static_cast<void>(world.all_gather("here"));
      world.barrier();
      world.barrier();
    });
  });
  CAPTURE(message);
  CHECK(contains(message, cause));
  check_new_world();
}

TEST_CASE("a rank whose kernel takes too long") {
  if (ranks() == 1) return;
  const int late = ranks() - 1;
  const std::string cause = "; rank " + std::to_string(late) + " is not waiting: it computes";
  const std::string message = message_with({cause}, [&](double deadline) {
    orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = deadline}};
    orrery::builder schedule{rank(), ranks()};
    schedule.shift(orrery::key(rank()), +1);
    schedule.next_step();
    std::vector<std::byte> memory(32);
    std::vector<orrery::exchange_pieces> pieces(1);
    pieces[0].sent = {{memory.data(), 16}};
    pieces[0].received = {{memory.data() + 16, 16}};
    auto channel = world.open(schedule, pieces);
    channel.begin();
    while (rank() == late && world.usable()) channel.context().poll();
    return message_of_exception<orrery::transport_error>([&] {
      channel.post(0);
      channel.await(0);
      world.barrier();
    });
  });
  CAPTURE(message);
  CHECK(contains(message, cause));
  check_new_world();
}

TEST_CASE("a call that begins before the last one is finished is refused") {
  if (ranks() == 1) return;
  static std::vector<std::byte> memory(32);  // a message that is not awaited may still arrive
  const std::string cause = "rank 0 begins a call, but has not finished its last one";
  for (const bool posts : {false, true}) {
    CAPTURE(posts);
    const std::string message = message_of_exception<orrery::transport_error>([&] {
      orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = 30}};
      orrery::builder schedule{rank(), ranks()};
      schedule.shift(orrery::key(rank()), +1);
      schedule.next_step();
      std::vector<orrery::exchange_pieces> pieces(1);
      pieces[0].sent = {{memory.data(), 16}};
      pieces[0].received = {{memory.data() + 16, 16}};
      auto channel = world.open(schedule, pieces);
      channel.begin();
      channel.post(0);
      channel.await(0);
      channel.begin();
      if (posts) channel.post(0);
      world.barrier();
      if (rank() == 0) channel.begin();
      world.barrier();
    });
    CHECK(contains(message, "orrery: rank " + std::to_string(rank()) + " stops: "));
    CHECK(contains(message, cause));
    check_new_world();
  }
}

TEST_CASE("a rank that ends by an exception") {
  if (ranks() == 1) return;
  const std::string message = message_of_exception<std::exception>([&] {
    orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = 30}};
    ring attend{world, shape};
    if (rank() == 0) throw std::runtime_error{"out of data"};
    call_forward(attend);
    world.barrier();
  });
  if (rank() == 0) {
    CHECK(message == "out of data");
  } else {
    CHECK(contains(message, "stops: rank 0 has ended by an exception"));
  }
  check_new_world();
}

namespace {

/// What one rank calls while all others call something else.
struct collective_of_a_test {
  const char* name;
  std::function<void(orrery::mpi::world&)> call;
};

void open_plan(orrery::mpi::world& world) {
  orrery::builder schedule{rank(), ranks()};
  schedule.next_step();
  static_cast<void>(world.open(schedule, {}));
}

}  // namespace

TEST_CASE("ranks in different collective calls") {
  if (ranks() == 1) return;
  std::vector<float> floats(8, 1.0F);
  const std::vector<collective_of_a_test> calls{
      {"barrier", [](orrery::mpi::world& world) { world.barrier(); }},
      {"all_gather", [](orrery::mpi::world& world) { static_cast<void>(world.all_gather("hello")); }},
      {"all_reduce_sum of 8 values of float",
       [&](orrery::mpi::world& world) { world.all_reduce_sum(std::span{floats}); }},
      {"require_agreement",
       [](orrery::mpi::world& world) {
         const ring attend{world, shape};
       }},
      {"open", open_plan}};
  for (const collective_of_a_test& first : calls) {
    for (const collective_of_a_test& others : calls) {
      if (&first == &others) continue;
      orrery::mpi::world world{MPI_COMM_WORLD};
      const collective_of_a_test& local = rank() == 0 ? first : others;
      const std::string message = message_of_exception<orrery::transport_error>([&] { local.call(world); });
      CAPTURE(message);
      CHECK(contains(message, "ranks are in different collective calls: "));
      CHECK(contains(message, std::string{"rank 0 calls "} + first.name));
      CHECK(contains(message, std::string{ranks() == 2 ? " calls " : " call "} + others.name));
      CHECK_FALSE(world.usable());
      CHECK(message_of_exception<orrery::transport_error>([&] { world.barrier(); }) == message);
    }
  }
  CHECK(floats == std::vector<float>(8, 1.0F));
}

TEST_CASE("a collective call more than the others") {
  if (ranks() == 1) return;
  orrery::mpi::world world{MPI_COMM_WORLD};
  if (rank() == 0) static_cast<void>(world.usable());  // is none
  world.barrier();
  const std::string message = message_of_exception<orrery::transport_error>([&] {
    if (rank() == 0) world.barrier();
    static_cast<void>(world.all_gather(""));
  });
  CHECK(contains(message, "ranks are in different collective calls: rank 0 calls barrier; "));
}

TEST_CASE("sums of different counts or types are refused, and the world can still be used") {
  if (ranks() == 1) return;
  orrery::mpi::world world{MPI_COMM_WORLD};
  std::vector<float> floats(8, 1.0F);
  std::vector<double> doubles(8, 1.0);
  std::string message = message_of_exception<std::invalid_argument>([&] {
    if (rank() == 0) world.all_reduce_sum(std::span{doubles});
    if (rank() != 0) world.all_reduce_sum(std::span{floats});
  });
  CHECK(contains(message, "rank 0 calls all_reduce_sum of 8 values of double"));
  CHECK(contains(message, "give values of one type"));
  message = message_of_exception<std::invalid_argument>(
      [&] { world.all_reduce_sum(std::span{floats}.first(rank() == 0 ? 0 : 8)); });
  CHECK(contains(message, "rank 0 calls all_reduce_sum of 0 values of float"));
  CHECK(contains(message, "give equally many"));
  world.all_reduce_sum(std::span{floats});
  CHECK(floats == std::vector<float>(8, static_cast<float>(ranks())));
}

TEST_CASE("malformed control messages fail the world, with the name of their sender") {
  if (ranks() == 1) return;
  const std::string long_one(orrery::mpi::control_messages::longest + 1, '!');
  const std::vector<std::pair<std::string, std::string>> messages{
      {"", "of 0 bytes, expected 1 to 2048"},
      {long_one, "of 2049 bytes, expected 1 to 2048"},
      {"x", "of the unknown kind 120"},
      {std::string(1, '\0'), "of the unknown kind 0"},
      {"?", "that is not a valid question: \"\""},
      {"?-1", "that is not a valid question: \"-1\""},
      {"?1 ", "that is not a valid question: \"1 \""},
      {"?18446744073709551616", "that is not a valid question"},
      {"=", "that is not a valid answer: \"\""},
      {"=0 0 1", "that is not a valid answer: \"0 0 1\""},
      {"=0 0 1 1 ", "that is not a valid answer"},
      {"=0 0 1 1 0 0", "that is not a valid answer"},
      {"=0 " + std::to_string(ranks()) + " 1 1 0", "that is not a valid answer"},
      {"=0 -1 1 1 0", "that is not a valid answer"},
      {"=0 0 " + std::to_string(ranks() + 1) + " 1 0", "that is not a valid answer"},
      {"=0 1 " + std::to_string(ranks()) + " 1 0", "that is not a valid answer"},
      {"=0 0 2 2147483647 0", "that is not a valid answer"},
      {"=0 0 1 0 0", "that is not a valid answer"},
      {"=0 0 1 4294967297 0", "that is not a valid answer"}};
  for (const auto& one : messages) {
    const std::string& message = one.first;
    CAPTURE(message);
    orrery::mpi::communicator world{MPI_COMM_WORLD, {}};
    if (rank() == 1) {
      MPI_Send(message.data(), static_cast<int>(message.size()), MPI_CHAR, 0, orrery::mpi::control_messages::tag,
               world.get());
    }
    while (rank() == 0 && world.usable()) std::this_thread::yield();
    const std::string said = message_of_exception<orrery::transport_error>([&] { world.barrier(); });
    CAPTURE(said);
    CHECK(contains(said, "rank 1 has sent rank 0 a control message " + one.second));
  }
  // Well-formed ones, at any time, do no harm.
  orrery::mpi::communicator world{MPI_COMM_WORLD, {}};
  for (const std::string message : {"?7", "=7 0 1 1 0", "=7 0 0 1 3"}) {
    if (rank() == 1) {
      MPI_Ssend(message.data(), static_cast<int>(message.size()), MPI_CHAR, 0, orrery::mpi::control_messages::tag,
                world.get());
    }
    if (rank() == 0) {
      int found = 0;
      while (found == 0) MPI_Iprobe(1, orrery::mpi::control_messages::tag, world.get(), &found, MPI_STATUS_IGNORE);
      CHECK(world.usable());
    }
  }
  world.barrier();
}

TEST_CASE_TEMPLATE("a rank that has no memory while it makes an operator, and goes on", Topology, orrery::ring,
                   orrery::concentric<2>) {
  using attention = orrery::attention<Topology, kernel>;
  constexpr auto native = orrery::mpi::collectives::native;  // of groups, for those that have some
  if (orrery::unsupported_reason(Topology{}, ranks()) != nullptr) return;
  const int culprit = ranks() - 1;
  long all = 0;
  {
    orrery::mpi::world world{MPI_COMM_WORLD, {.collectives = native}};
    const attention first{world, shape};  // proves the schedule, once in a process
    allocations = 0;
    const attention attend{world, shape};
    all = allocations;
  }
  MPI_Bcast(&all, 1, MPI_LONG, culprit, MPI_COMM_WORLD);
  REQUIRE(all > 40);
  const long points = 40;
  for (long point = 0; point < points; ++point) {
    CAPTURE(point);
    orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = 100, .collectives = native}};
    int failed = 0;
    successes = rank() == culprit ? all * point / points : -1;
    try {
      const attention attend{world, shape};
    } catch (...) {
      failed = 1;
    }
    successes = -1;
    // What a trainer does to tell the others, who must not be waiting in the construction.
    MPI_Allreduce(MPI_IN_PLACE, &failed, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    int usable = world.usable() ? 1 : 0;
    MPI_Bcast(&usable, 1, MPI_INT, culprit, MPI_COMM_WORLD);
    CHECK(failed > 0);
    if (usable != 0) {  // all have thrown the same
      CHECK(failed == ranks());
      world.barrier();
      continue;
    }
    // If the culprit has come to the last collective call, the others learn of it in their next one.
    const std::string message = message_of_exception<orrery::transport_error>([&] { world.barrier(); });
    CAPTURE(message);
    CHECK(contains(message, "rank " + std::to_string(culprit) + " failed"));
  }
  check_new_world();
}
