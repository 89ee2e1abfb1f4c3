// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Ranks that disagree, do not come or fail: every rank throws a sentence, and none hangs.
#include <chrono>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/ring.hpp"

#include "conformance.hpp"
#include "mpi/main.hpp"

using mpi_test::contains;
using mpi_test::rank;
using mpi_test::ranks;
using mpi_test::sentence_of;
using kernel = orrery::flash<double>;
using ring = orrery::attention<orrery::ring, kernel>;

namespace {

const orrery::attention_shape shape{.length = 40, .query_heads = 4, .head_dim = 4};

template <class Operator>
void call_forward(Operator& attend) {
  const oracle::problem p = oracle::random_problem<double>(conformance::oracle_shape(shape), 1);
  conformance::rank_tensors<kernel> mine{p, attend.query_positions(), attend.key_positions(), {}};
  mine.forward(attend);
}

/// A world that works: after every failure another one can be made.
void check_new_world() {
  MPI_Barrier(MPI_COMM_WORLD);
  orrery::mpi::world world{MPI_COMM_WORLD};
  const auto on_mpi = [&](int, auto&& body) { body(world); };
  CHECK(conformance::failures<orrery::ring, kernel, orrery::mpi::world>(on_mpi, ranks(), shape, orrery::causal{},
                                                                        orrery::zigzag{}) == "");
}

/// The sentence that `sentence(deadline)` ends with, the first that has all of `parts` on all ranks. Deadlines grow: on
/// a machine that is busy with other things, a rank that has time may answer late.
template <class Sentence>
std::string sentence_with(const std::vector<std::string>& parts, const Sentence& sentence) {
  std::string said;
  for (const double deadline : {1.0, 4.0, 16.0}) {
    said = sentence(deadline);
    int right = 1, all_right = 0;
    for (const std::string& part : parts) right = right != 0 && contains(said, part) ? 1 : 0;
    MPI_Allreduce(&right, &all_right, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (all_right != 0) break;
  }
  return said;
}

void sleep_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>{seconds}); }

}  // namespace

TEST_CASE("ranks that say different things") {
  orrery::mpi::world world{MPI_COMM_WORLD};
  orrery::attention_shape mine = shape;
  mine.length += rank() == ranks() - 1 ? 1 : 0;
  const std::string sentence = sentence_of<std::invalid_argument>([&] { const ring attend{world, mine}; });
  if (ranks() == 1) {
    CHECK(sentence == "nothing");
  } else {
    CHECK(contains(sentence, "ranks disagree about length"));
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
  const std::string sentence = sentence_of<orrery::transport_error>([&] { static_cast<void>(world.open(p, pieces)); });
  CHECK(contains(sentence, "rank 0 sends to rank 1 other messages than that expects"));
  world.barrier();
}

TEST_CASE_TEMPLATE("a rank that never comes", Topology, orrery::ring, orrery::all_gather) {
  if (ranks() == 1) return;
  const int late = ranks() - 1;
  // Whoever is the first to give up: those that wait are asked whom they wait for.
  const std::string cause = "; rank " + std::to_string(late) + " does not answer: it is late, stands still";
  const std::string sentence = sentence_with({cause, " in step "}, [&](double deadline) {
    orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = deadline, .collectives = orrery::mpi::collectives::native}};
    orrery::attention<Topology, kernel> attend{world, shape};
    if (rank() == late) sleep_for(2 * deadline);
    const std::string said = sentence_of<orrery::transport_error>([&] {
      call_forward(attend);
      world.barrier();
      world.barrier();
    });
    // From now on it says nothing else.
    CHECK(sentence_of<orrery::transport_error>([&] { call_forward(attend); }) == said);
    CHECK(sentence_of<orrery::transport_error>([&] { world.barrier(); }) == said);
    return said;
  });
  CAPTURE(sentence);
  CHECK(contains(sentence, "orrery: rank " + std::to_string(rank()) + " stops: "));
  CHECK(contains(sentence, " s in step "));
  CHECK(contains(sentence, "key shard "));
  CHECK(contains(sentence, cause));
  CHECK(contains(sentence, "cannot be used any more"));
  check_new_world();
}

TEST_CASE("a rank that never comes to a collective call") {
  if (ranks() == 1) return;
  const std::string cause = " s for all ranks to come to the same collective call; not there: rank 0;";
  const std::string sentence = sentence_with({cause}, [](double deadline) {
    orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = deadline}};
    if (rank() == 0) sleep_for(2 * deadline);
    return sentence_of<orrery::transport_error>([&] {
      static_cast<void>(world.all_gather("here"));
      world.barrier();
      world.barrier();
    });
  });
  CAPTURE(sentence);
  CHECK(contains(sentence, cause));
  check_new_world();
}

TEST_CASE("a rank whose kernel takes too long") {
  if (ranks() == 1) return;
  const int late = ranks() - 1;
  const std::string cause = "; rank " + std::to_string(late) + " does not wait for anybody: it computes";
  const std::string sentence = sentence_with({cause}, [&](double deadline) {
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
    return sentence_of<orrery::transport_error>([&] {
      channel.post(0);
      channel.await(0);
      world.barrier();
    });
  });
  CAPTURE(sentence);
  CHECK(contains(sentence, cause));
  check_new_world();
}

TEST_CASE("a call that begins in the middle of the last one is refused") {
  if (ranks() == 1) return;
  static std::vector<std::byte> memory(32);  // a message that is not awaited may still arrive
  const std::string cause = "rank 0 begins a call, but has left its last one in the middle";
  for (const bool posts : {false, true}) {
    CAPTURE(posts);
    const std::string sentence = sentence_of<orrery::transport_error>([&] {
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
    CHECK(contains(sentence, "orrery: rank " + std::to_string(rank()) + " stops: "));
    CHECK(contains(sentence, cause));
    check_new_world();
  }
}

TEST_CASE("a rank that ends by an exception") {
  if (ranks() == 1) return;
  const std::string sentence = sentence_of<std::exception>([&] {
    orrery::mpi::world world{MPI_COMM_WORLD, {.deadline = 30}};
    ring attend{world, shape};
    if (rank() == 0) throw std::runtime_error{"out of data"};
    call_forward(attend);
    world.barrier();
  });
  if (rank() == 0) {
    CHECK(sentence == "out of data");
  } else {
    CHECK(contains(sentence, "stops: rank 0 has ended by an exception"));
  }
  check_new_world();
}
