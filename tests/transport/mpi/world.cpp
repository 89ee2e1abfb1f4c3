// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What a world does beside attention: its collectives, its channels, and how it gets on with others.
#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/flash.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/transport/counted.hpp"

#include "support/conformance.hpp"
#include "transport/mpi/main.hpp"

using mpi_test::contains;
using mpi_test::message_of_exception;
using mpi_test::rank;
using mpi_test::ranks;

static_assert(orrery::transport<orrery::mpi::world>);

// What the library asks MPI for, seen through MPI's profiling interface.
static int gathers_called = 0;
static int all_to_alls_called = 0;

extern "C" int MPI_Iallgatherv(const void* sent, int count, MPI_Datatype type, void* received, const int* counts,
                               const int* offsets, MPI_Datatype types, MPI_Comm among, MPI_Request* request) {
  ++gathers_called;
  return PMPI_Iallgatherv(sent, count, type, received, counts, offsets, types, among, request);
}
extern "C" int MPI_Ialltoallw(const void* sent, const int* send_counts, const int* send_offsets,
                              const MPI_Datatype* send_types, void* received, const int* counts, const int* offsets,
                              const MPI_Datatype* types, MPI_Comm among, MPI_Request* request) {
  ++all_to_alls_called;
  return PMPI_Ialltoallw(sent, send_counts, send_offsets, send_types, received, counts, offsets, types, among, request);
}

TEST_CASE("MPI must be initialised") {
  CHECK(mpi_test::before_initialisation() ==
        "orrery: mpi::world: MPI is not initialised, or finalised already; call MPI_Init_thread before");
}

TEST_CASE("invalid arguments of a world are refused") {
  using orrery::mpi::world;
  const auto refusal = [](MPI_Comm of, const orrery::mpi::options& options) {
    return message_of_exception<std::invalid_argument>([&] { const world refused{of, options}; });
  };
  CHECK(contains(refusal(MPI_COMM_NULL, {}), "the communicator is MPI_COMM_NULL"));
  CHECK(contains(refusal(MPI_COMM_WORLD, {.deadline = 0}), "deadline is 0.000000, expected a positive number"));
  CHECK(contains(refusal(MPI_COMM_WORLD, {.threads_per_rank = 0}), "threads_per_rank is 0, expected at least 1"));
  CHECK(contains(refusal(MPI_COMM_WORLD, {.progress_interval = -1}), "progress_interval is -1.000000"));
  CHECK(contains(refusal(MPI_COMM_WORLD, {.progress_interval = std::nan("")}), "progress_interval is nan"));
}

TEST_CASE("ranks, barrier and texts") {
  orrery::mpi::world world{MPI_COMM_WORLD};
  CHECK(world.rank() == rank());
  CHECK(world.size() == ranks());
  world.barrier();
  const auto text_of = [](int r) {
    return std::string(static_cast<std::size_t>(r) * 1000, static_cast<char>('a' + r));
  };
  const std::vector<std::string> all = world.all_gather(text_of(rank()));
  REQUIRE(all.size() == static_cast<std::size_t>(ranks()));
  for (int r = 0; r < ranks(); ++r) CHECK(all[static_cast<std::size_t>(r)] == text_of(r));
}

TEST_CASE("sums of an array") {
  orrery::mpi::world world{MPI_COMM_WORLD};
  std::array<int, 2> values{rank(), 5};
  world.all_reduce_sum(std::span{values});
  CHECK(values == std::array<int, 2>{ranks() * (ranks() - 1) / 2, 5 * ranks()});
}

TEST_CASE("sums are added in the order of the ranks") {
  orrery::mpi::world world{MPI_COMM_WORLD};
  // The last is more than is summed at once.
  for (const std::size_t count :
       {std::size_t{0}, std::size_t{1}, std::size_t{5}, std::size_t{1000}, std::size_t{1100000}}) {
    const auto value = [](int r, std::size_t i) {
      return static_cast<double>(i % 1013 + 1) * (r % 2 == 0 ? 1e16 : 0.7) / (r + 1);
    };
    std::vector<double> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = value(rank(), i);
    world.all_reduce_sum(std::span{values});
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < count; ++i) {
      double sum = 0;
      for (int r = 0; r < ranks(); ++r) sum += value(r, i);
      if (values[i] != sum) ++wrong;
    }
    CHECK(wrong == 0);
  }
}

namespace {

/// Bytes and messages of a call, as counted and as the traffic report says.
template <class Topology>
void check_counts(orrery::mpi::world& world) {
  if (orrery::unsupported_reason(Topology{}, world.size()) != nullptr) return;
  INFO(orrery::name_of(Topology{}));
  const std::int64_t tokens = 6, heads = 8, key_heads = 4, dim = 3, value_dim = 5, real = sizeof(double);
  orrery::counted counting{world};
  const orrery::attention_shape shape{.length = tokens * world.size(),
                                      .query_heads = heads,
                                      .key_heads = key_heads,
                                      .head_dim = dim,
                                      .value_dim = value_dim};
  orrery::attention<Topology, orrery::flash<double>> attend{counting, shape};
  const oracle::problem p = oracle::random_problem<double>(conformance::oracle_shape(shape), 3);
  conformance::rank_tensors<orrery::flash<double>> local{p, attend.query_positions(), attend.key_positions(), {}};
  CHECK(counting.messages_sent() == 0);

  // At [2 * side + payload], per token and slice.
  const std::int64_t forward[] = {heads * dim, heads * (value_dim + 1), key_heads * (dim + value_dim), 0};
  const std::int64_t backward[] = {heads * (dim + value_dim + 2), heads * dim, key_heads * (dim + value_dim),
                                   key_heads * (dim + value_dim)};
  for (const bool is_forward : {true, false}) {
    const orrery::traffic_report expected =
        orrery::traffic(Topology{}, world.size(), is_forward ? orrery::pass::forward : shape.circulate);
    const orrery::rank_traffic& sent = expected.ranks[world.rank()];
    std::int64_t bytes = 0;
    for (std::size_t kind = 0; kind < 4; ++kind) {
      bytes += sent.blocks_sent[kind] * (is_forward ? forward : backward)[kind] * tokens * real / expected.slices;
    }
    counting.reset();
    if (is_forward) local.forward(attend);
    if (!is_forward) local.backward(attend);
    CHECK(counting.messages_sent() == sent.messages_sent);
    if (expected.slices <= 4 && key_heads % expected.slices == 0) CHECK(counting.bytes_sent() == bytes);
  }
}

}  // namespace

TEST_CASE("a call sends what the traffic report says") {
  for (const auto options : {orrery::mpi::collectives::expanded, orrery::mpi::collectives::native}) {
    orrery::mpi::world world{MPI_COMM_WORLD, {.collectives = options}};
    check_counts<orrery::ring>(world);
    check_counts<orrery::wallfacer<2>>(world);
    check_counts<orrery::concentric<2>>(world);
    check_counts<orrery::concentric<2, 2>>(world);
    check_counts<orrery::all_gather>(world);
    check_counts<orrery::usp<2>>(world);
    check_counts<orrery::double_ring<2>>(world);
  }
}

namespace {

/// What a forward and a backward ask MPI for: MPI_Iallgatherv and MPI_Ialltoallw, so often.
template <class Topology>
std::pair<int, int> calls_of(orrery::mpi::world& world) {
  const orrery::attention_shape shape{.length = 61, .query_heads = 8, .head_dim = 4};
  orrery::attention<Topology, orrery::flash<double>> attend{world, shape};
  const oracle::problem p = oracle::random_problem<double>(conformance::oracle_shape(shape), 1);
  conformance::rank_tensors<orrery::flash<double>> local{p, attend.query_positions(), attend.key_positions(), {}};
  const std::pair before{gathers_called, all_to_alls_called};
  local.forward(attend);
  local.backward(attend);
  return {gathers_called - before.first, all_to_alls_called - before.second};
}

}  // namespace

TEST_CASE("collectives are calls of MPI if all members of the group mark them") {
  using counts = std::pair<int, int>;
  const bool several = ranks() > 1;
  orrery::mpi::world native{MPI_COMM_WORLD, {.collectives = orrery::mpi::collectives::native}};
  CHECK(calls_of<orrery::ring>(native) == counts{0, 0});
  CHECK(calls_of<orrery::all_gather>(native) == (several ? counts{2, 1} : counts{0, 0}));
  CHECK(calls_of<orrery::ulysses>(native) == (several ? counts{0, 4} : counts{0, 0}));
  // Communicators of some of the ranks need a thread of their own.
  const bool makes_groups = mpi_test::thread_level() == MPI_THREAD_MULTIPLE;
  if (ranks() % 2 == 0) {
    const bool groups_of_all = ranks() == 2;
    const counts all_groups{2, 2};
    CHECK(calls_of<orrery::concentric<2>>(native) == (makes_groups || groups_of_all ? all_groups : counts{0, 0}));
  }
  orrery::mpi::world expanded{MPI_COMM_WORLD};
  CHECK(calls_of<orrery::all_gather>(expanded) == counts{0, 0});
  // One rank that will not is enough.
  orrery::mpi::world mixed{
      MPI_COMM_WORLD,
      {.collectives = rank() == 0 ? orrery::mpi::collectives::expanded : orrery::mpi::collectives::native}};
  CHECK(calls_of<orrery::all_gather>(mixed) == counts{0, 0});
  if (ranks() % 4 == 0) {  // a group that does not have that rank goes on
    CHECK(calls_of<orrery::usp<2>>(mixed) == (rank() < 2 || !makes_groups ? counts{0, 0} : counts{0, 4}));
  }
}

TEST_CASE("marks that differ between members are not native collectives") {
  if (ranks() < 2) return;
  orrery::mpi::world world{MPI_COMM_WORLD, {.collectives = orrery::mpi::collectives::native}};
  const orrery::schedule::rank_group all{0, ranks()};
  const int next = (rank() + 1) % ranks();
  const int previous = (rank() + ranks() - 1) % ranks();
  orrery::builder schedule{rank(), ranks()};
  schedule.begin_exchange(next, orrery::schedule::no_rank, {0, 2});
  schedule.send(orrery::key(rank()));
  schedule.mark_collective(orrery::schedule::collective_kind::all_to_all, all, 0);
  schedule.next_step();
  schedule.begin_exchange(orrery::schedule::no_rank, previous, {0, 1});
  schedule.receive(orrery::key(previous));
  schedule.mark_collective(orrery::schedule::collective_kind::all_to_all, all, 1);
  schedule.next_step();
  const orrery::program p = schedule;
  const int local = rank();
  int taken = -1;
  std::vector<orrery::exchange_pieces> pieces(2);
  const auto at = [](const int& number) {
    return orrery::piece{reinterpret_cast<std::byte*>(const_cast<int*>(&number)), sizeof(int)};
  };
  pieces[0].sent = {at(local)};
  pieces[1].received = {at(taken)};
  auto channel = world.open(p, pieces);
  const int before = all_to_alls_called;
  channel.begin();
  for (const int e : {0, 1}) channel.post(e);
  for (const int e : {0, 1}) channel.await(e);
  CHECK(taken == previous);
  CHECK(all_to_alls_called == before);
}

namespace {

/// A step in which rank 0 of three exchanges one number with each other rank, marked as a collective of all.
struct marked_exchanges {
  orrery::builder schedule{0, 3};
  std::vector<int> numbers = std::vector<int>(16);
  std::vector<orrery::exchange_pieces> pieces;

  [[nodiscard]] orrery::piece at(std::size_t i) {
    return {reinterpret_cast<std::byte*>(&numbers[i]), static_cast<std::int64_t>(sizeof(int))};
  }
  /// Sends the number `sent` to rank 1, in lane 0, and to rank 2, in `lane`.
  void add(std::size_t sent, int lane = 0) {
    for (const int peer : {1, 2}) {
      schedule.begin_exchange(peer, peer, {peer == 1 ? 0 : lane, 1});
      schedule.send(orrery::key(0));
      schedule.receive(orrery::key(peer));
      pieces.push_back({{at(sent)}, {at(pieces.size() + 8)}});
    }
  }
  void mark(orrery::schedule::collective_kind kind, int first) {
    schedule.mark_collective(kind, orrery::schedule::rank_group{0, 3}, first);
  }
};

}  // namespace

using orrery::mpi::candidates_of;
using orrery::schedule::collective_kind;

TEST_CASE("an all_gather that sends one message to all is one MPI_Iallgatherv") {
  marked_exchanges one;
  one.add(0);
  one.mark(collective_kind::all_gather, 0);
  const orrery::program p = one.schedule;
  const auto gathers = [&] {
    const std::vector<orrery::mpi::candidate> found = candidates_of(p, one.pieces);
    REQUIRE(found.size() == 1);
    return found[0].gathers;
  };
  CHECK(gathers());
  one.pieces[1].sent = {one.at(1)};  // as many bytes, of another address
  CHECK_FALSE(gathers());
  one.pieces[1].sent = {{one.at(0).data, 1}};
  CHECK_FALSE(gathers());
}

TEST_CASE("exchanges of several lanes are no native collective") {
  marked_exchanges lanes;
  lanes.add(0, 1);
  lanes.mark(collective_kind::all_to_all, 0);
  const orrery::program p = lanes.schedule;
  REQUIRE(p.collectives.size() == 1);
  CHECK(candidates_of(p, lanes.pieces).empty());
}

TEST_CASE("two collectives of one group, lane and step are not native: members could not tell them apart") {
  for (const bool in_two_steps : {false, true}) {
    marked_exchanges twice;
    twice.add(0);
    twice.mark(collective_kind::all_to_all, 0);
    if (in_two_steps) twice.schedule.next_step();
    twice.add(1);
    twice.mark(collective_kind::all_to_all, 2);
    const orrery::program p = twice.schedule;
    REQUIRE(p.collectives.size() == 2);
    CHECK(candidates_of(p, twice.pieces).size() == (in_two_steps ? 2 : 0));
  }
}

TEST_CASE("tags are used again when all have been taken") {
  orrery::mpi::communicator world{MPI_COMM_WORLD, {}};
  void* value = nullptr;
  int found = 0;
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, static_cast<void*>(&value), &found);
  REQUIRE(found != 0);
  const int last = (std::min)(*static_cast<const int*>(value), INT_MAX - 1);
  const int first = world.take_tags(2);
  CHECK(world.take_tags(last - first - 1) == first + 2);  // the rest
  CHECK(world.take_tags(3) == first);
  CHECK(world.take_tags(1) == first + 3);
  CHECK(world.take_tags(last - first) == first);  // one more than are left
}

TEST_CASE("two operators share a world") {
  orrery::mpi::world world{MPI_COMM_WORLD};
  const orrery::attention_shape small{.length = 17, .query_heads = 2, .head_dim = 4};
  const orrery::attention_shape large{.length = 61, .query_heads = 4, .key_heads = 2, .head_dim = 6};
  using kernel = orrery::flash<double>;
  orrery::attention<orrery::ring, kernel> first{world, small, orrery::causal{}};
  orrery::attention<orrery::all_gather, kernel> second{world, large, orrery::full{}, orrery::zigzag{}};
  const oracle::problem p = oracle::random_problem<double>(conformance::oracle_shape(small), 1);
  const oracle::problem q = oracle::random_problem<double>(conformance::oracle_shape(large), 2);
  conformance::rank_tensors<kernel> of_first{p, first.query_positions(), first.key_positions(), {}};
  conformance::rank_tensors<kernel> of_second{q, second.query_positions(), second.key_positions(), {}};
  for (int layer = 0; layer < 3; ++layer) {
    of_first.poison();
    of_second.poison();
    of_first.forward(first);
    of_second.forward(second);
    of_second.backward(second);
    of_first.backward(first);
    CHECK(of_first.mismatch(p, oracle::solve(p, orrery::causal{}), first.query_positions(), first.key_positions()) ==
          "");
    CHECK(of_second.mismatch(q, oracle::solve(q, orrery::full{}), second.query_positions(), second.key_positions()) ==
          "");
  }
}

TEST_CASE("a part of a communicator, in an order of its own") {
  MPI_Comm part = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank() % 2, -rank(), &part);
  {
    orrery::mpi::world world{part};
    CHECK(world.size() == (ranks() + 1 - rank() % 2) / 2);
    const auto on_part = [&](int, auto&& body) { body(world); };
    const orrery::attention_shape shape{.length = 29, .query_heads = 2, .head_dim = 4};
    CHECK(conformance::failures<orrery::ring, orrery::flash<double>, orrery::mpi::world>(
              on_part, world.size(), shape, orrery::causal{}, orrery::zigzag{}) == "");
  }
  MPI_Comm_free(&part);
}

TEST_CASE("the trainer's messages do not match those of the library") {
  int received = 0;
  MPI_Request trainers = MPI_REQUEST_NULL;
  MPI_Irecv(&received, 1, MPI_INT, MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &trainers);
  orrery::mpi::world world{MPI_COMM_WORLD};
  const auto on_mpi = [&](int, auto&& body) { body(world); };
  const orrery::attention_shape shape{.length = 29, .query_heads = 2, .head_dim = 4};
  CHECK(conformance::failures<orrery::ring, orrery::flash<double>, orrery::mpi::world>(
            on_mpi, ranks(), shape, orrery::causal{}, orrery::zigzag{}) == "");
  const int sent = 4711;
  MPI_Send(&sent, 1, MPI_INT, (rank() + 1) % ranks(), 1, MPI_COMM_WORLD);
  MPI_Wait(&trainers, MPI_STATUS_IGNORE);
  CHECK(received == sent);
}

TEST_CASE("blocks anywhere in memory are one message") {
  orrery::mpi::world world{MPI_COMM_WORLD};
  if (world.size() == 1) return;
  const int next = (rank() + 1) % ranks();
  const int previous = (rank() + ranks() - 1) % ranks();
  orrery::builder schedule{rank(), ranks()};
  schedule.begin_exchange(next, previous, {}, orrery::schedule::payload::operand);
  for (const orrery::schedule::side s : {orrery::schedule::side::query, orrery::schedule::side::key}) {
    schedule.send({s, rank()});
    schedule.receive({s, previous});
  }
  schedule.next_step();
  const orrery::program p = schedule;
  std::vector<int> from(300), to(300, -1);
  std::iota(from.begin(), from.end(), rank() * 1000);
  const auto at = [](std::vector<int>& memory, std::size_t first, std::int64_t count) {
    return orrery::piece{reinterpret_cast<std::byte*>(memory.data() + first), count * std::int64_t{sizeof(int)}};
  };
  std::vector<orrery::exchange_pieces> pieces(1);
  pieces[0].sent = {at(from, 200, 60), at(from, 10, 40)};
  pieces[0].received = {at(to, 0, 60), at(to, 60, 40)};
  auto channel = world.open(p, pieces);
  for (int call = 0; call < 3; ++call) {
    channel.begin();
    channel.post(0);
    channel.await(0);
    for (std::size_t i = 0; i < 300; ++i) {
      const int expected = i >= 100 ? -1 : previous * 1000 + static_cast<int>(i < 60 ? 200 + i : i - 50);
      REQUIRE(to[i] == expected);
    }
    to.assign(to.size(), -1);
    world.barrier();
  }
}

namespace {

const orrery::attention_shape layer{.length = 40, .query_heads = 2, .head_dim = 4};
using double_flash = orrery::flash<double>;
using double_ring_attention = orrery::attention<orrery::ring, double_flash>;

/// A problem, and this rank's tensors.
struct layer_call {
  template <class Operator>
  explicit layer_call(const Operator& attend)
      : p{oracle::random_problem<double>(conformance::oracle_shape(layer), 1)},
        local{p, attend.query_positions(), attend.key_positions(), {}} {}

  template <class Operator>
  [[nodiscard]] std::string mismatch(const Operator& attend) {
    return local.mismatch(p, oracle::solve(p, orrery::causal{}), attend.query_positions(), attend.key_positions());
  }

  oracle::problem p;
  conformance::rank_tensors<double_flash> local;
};

/// What `work` throws on another thread, which has ended when this returns.
template <class Work>
std::string thrown_elsewhere(const Work& work) {
  std::string message;
  std::thread other{[&] { message = message_of_exception<std::logic_error>(work); }};
  other.join();
  return message;
}

}  // namespace

TEST_CASE("under MPI_THREAD_FUNNELED only the main thread may use a world") {
  if (mpi_test::thread_level() >= MPI_THREAD_SERIALIZED) return;
  orrery::mpi::world world{MPI_COMM_WORLD};
  double_ring_attention attend{world, layer, orrery::causal{}};
  layer_call call{attend};
  call.local.poison();
  call.local.forward(attend);
  const std::string message = thrown_elsewhere([&] { world.barrier(); });
  CHECK(contains(message, "called from another thread than the one that initialised MPI"));
  CHECK(contains(message, "ask MPI_Init_thread for MPI_THREAD_SERIALIZED"));
  CHECK(thrown_elsewhere([&] { call.local.backward(attend); }) == message);
  CHECK(thrown_elsewhere([&] { static_cast<void>(world.all_gather("")); }) == message);
  CHECK(thrown_elsewhere([&] { CHECK(world.usable()); }) == "nothing");  // does not look for news then
  CHECK(contains(message_of_exception<std::invalid_argument>([&] {
                   const std::string other = thrown_elsewhere([] { const orrery::mpi::world refused{MPI_COMM_WORLD}; });
                   throw std::invalid_argument{other};
                 }),
                 "this is not the thread that initialised MPI"));
  // All of that has changed nothing.
  world.barrier();
  call.local.backward(attend);
  CHECK(call.mismatch(attend) == "");
}

TEST_CASE("a backward on an autograd thread, while the main thread waits") {
  if (mpi_test::thread_level() < MPI_THREAD_SERIALIZED) return;
  for (const auto options : {orrery::mpi::collectives::expanded, orrery::mpi::collectives::native}) {
    orrery::mpi::world world{MPI_COMM_WORLD, {.threads_per_rank = 2, .collectives = options}};
    double_ring_attention attend{world, layer, orrery::causal{}};
    orrery::attention<orrery::all_gather, double_flash> gathering{world, layer, orrery::causal{}};
    layer_call call{attend}, of_gathering{gathering};
    for (int step = 0; step < 3; ++step) {
      call.local.poison();
      of_gathering.local.poison();
      call.local.forward(attend);
      of_gathering.local.forward(gathering);
      CHECK(thrown_elsewhere([&] {
              of_gathering.local.backward(gathering);
              call.local.backward(attend);
              world.barrier();
            }) == "nothing");
      CHECK(call.mismatch(attend) == "");
      CHECK(of_gathering.mismatch(gathering) == "");
    }
  }
}

TEST_CASE("a world, an operator and its calls on one thread each") {
  if (mpi_test::thread_level() < MPI_THREAD_SERIALIZED) return;
  std::unique_ptr<orrery::mpi::world> world;
  std::unique_ptr<double_ring_attention> attend;
  std::unique_ptr<layer_call> call;
  CHECK(thrown_elsewhere([&] { world = std::make_unique<orrery::mpi::world>(MPI_COMM_WORLD); }) == "nothing");
  CHECK(thrown_elsewhere([&] {
          attend = std::make_unique<double_ring_attention>(*world, layer, orrery::causal{});
          call = std::make_unique<layer_call>(*attend);
        }) == "nothing");
  CHECK(thrown_elsewhere([&] { call->local.forward(*attend); }) == "nothing");
  CHECK(thrown_elsewhere([&] { call->local.backward(*attend); }) == "nothing");
  CHECK(call->mismatch(*attend) == "");
  CHECK(thrown_elsewhere([&] {
          attend.reset();
          world.reset();
        }) == "nothing");
}

TEST_CASE("two threads do not call one operator at once") {
  orrery::mpi::world world{MPI_COMM_WORLD};
  double_ring_attention attend{world, layer, orrery::causal{}};
  layer_call call{attend}, other{attend};
  call.local.poison();
  other.local.poison();
  int refused = 0;
  attend.forward(call.local.q.view(), call.local.k.view(), call.local.v.view(), call.local.out.view(),
                 call.local.lse.view(), [&](const orrery::output_part&) {
                   for (const bool forward : {true, false}) {
                     const std::string message = thrown_elsewhere(
                         [&] { forward ? other.local.forward(attend) : other.local.backward(attend); });
                     refused += contains(message, "called while another call of this operator is in progress") ? 1 : 0;
                   }
                 });
  CHECK(refused == 2);
  call.local.backward(attend);
  CHECK(call.mismatch(attend) == "");
}

TEST_CASE("two threads do not call at once") {
  if (mpi_test::thread_level() < MPI_THREAD_SERIALIZED || ranks() < 2) return;
  constexpr const char* refusal = "called while another thread is in a call of this world";
  {
    orrery::mpi::world world{MPI_COMM_WORLD};
    double_ring_attention attend{world, layer, orrery::causal{}};
    double_ring_attention second{world, layer, orrery::causal{}};
    layer_call call{attend}, of_second{second};
    call.local.poison();
    {
      auto begun = attend.begin_forward(call.local.out.view(), call.local.lse.view());
      begun.queries(call.local.q.view());
      CHECK(contains(thrown_elsewhere([&] { world.barrier(); }), refusal));
      CHECK(contains(thrown_elsewhere([&] { of_second.local.forward(second); }), refusal));
      CHECK(contains(thrown_elsewhere([&] { static_cast<void>(world.all_gather("")); }), refusal));
      world.barrier();  // this thread may
      begun.keys(call.local.k.view());
      begun.values(call.local.v.view());
      begun.finish();
    }
    CHECK(thrown_elsewhere([&] { world.barrier(); }) == "nothing");
    call.local.backward(attend);
    CHECK(call.mismatch(attend) == "");
  }
  orrery::mpi::communicator world{MPI_COMM_WORLD, {}};
  {
    const auto inside = world.enter();
    CHECK(contains(thrown_elsewhere([&] { world.barrier(); }), refusal));
  }
  CHECK(thrown_elsewhere([&] { world.barrier(); }) == "nothing");
}
