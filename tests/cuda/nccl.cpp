// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The transport `nccl` on doubles of NCCL and of the CUDA runtime: the conformance suite, what is called, and failures.
#include "orrery/transport/nccl.hpp"

#include <atomic>
#include <cstdint>
#include <future>
#include <mutex>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/device_cudnn.cuh"
#include "orrery/kernel/reference.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/transport/threads.hpp"

#include "any.hpp"
#include "cuda/cudnn_double.hpp"
#include "cuda/device_conformance.hpp"
#include "cuda/enqueued.hpp"
#include "cuda/nccl_double.hpp"
#include "cuda/runtime_double.hpp"
#include "cuda/streamed_device.hpp"

namespace {

namespace nccl = orrery::nccl;
using kernel = cuda_test::enqueued<orrery::reference<double>>;

void start(const cuda_double::settings& how) {
  cuda_double::reset(how);
  nccl_double::reset();
}

/// Races, misuse and leaks, one a line.
std::string found_by_doubles() {
  cuda_test::enqueued_work::forget();
  std::string all;
  for (const std::string& one : cuda_double::faults()) all += one + "\n";
  return all + cuda_double::leaks() + nccl_double::faults();
}

/// Calls body(world) on ranks that are threads, as a trainer would: with its own communicator and stream.
template <class Body>
void run(int ranks, const nccl::options& how, const Body& body) {
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        orrery::check_cuda(cudaSetDevice(rank), "cudaSetDevice");
        const orrery::cuda_stream stream;
        const nccl::communicator comm = nccl::join(id, rank, ranks, 20);
        nccl::world world{comm.get(), stream.get(), how};
        body(world);
        world.synchronize();
      } catch (...) {
        const std::lock_guard lock{mutex};
        if (first == nullptr) first = std::current_exception();
      }
    });
  }
  for (std::thread& one : threads) one.join();
  if (first != nullptr) std::rethrow_exception(first);
}

cuda_double::settings devices(int count, std::uint64_t seed = 1) {
  return {.seed = seed, .compute_capabilities = std::vector(static_cast<std::size_t>(count), std::pair{9, 0})};
}

template <class Body>
std::string sentence_of(const Body& body) {
  try {
    body();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

void says(const std::string& sentence, const std::string& part) {
  INFO(sentence);
  CHECK_MESSAGE(sentence.find(part) != std::string::npos, "without: ", part);
}

const orrery::attention_shape small{.length = 12, .query_heads = 2, .head_dim = 2};

/// A rank's operator and tensors.
template <class Topology>
struct trainer {
  orrery::attention<Topology, kernel> attend;
  conformance::rank_tensors<kernel> host;
  cuda_test::device_tensors<kernel> tensors;

  explicit trainer(nccl::world& on)
      : attend{on, small, orrery::causal{}},
        host{oracle::random_problem<double>(conformance::oracle_shape(small), 1),
             attend.query_positions(),
             attend.key_positions(),
             {}},
        tensors{host, on.stream()} {}
  void step() {
    tensors.forward(attend);
    tensors.backward(attend);
  }
};

}  // namespace

TEST_CASE("results") {
  std::uint64_t seed = 0;
  for (const bool native : {true, false}) {
    const auto on_nccl = [&](int ranks, auto&& body) { run(ranks, {.native_all_gather = native}, body); };
    for (const int world : {1, 2, 3, 4, 7, 8}) {
      for (const orrery::any_topology& topology : any::topologies()) {
        for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
          if (topology.refuses(world) != nullptr || topology.refuses(world, circulate) != nullptr) continue;
          start(devices(world, ++seed));
          orrery::attention_shape shape{.length = seed % 3 == 0 ? 23 : 16,
                                        .query_heads = 8,
                                        .key_heads = 4,
                                        .head_dim = 3,
                                        .circulate = circulate};
          const std::string found = cuda_test::failures<orrery::any_topology, kernel, nccl::world>(
              on_nccl, world, shape, any::mask{.ahead = 0}, orrery::zigzag{}, seed, topology);
          INFO(topology.name(), " over ", world, ", ", orrery::name_of(circulate));
          CHECK(found == "");
          CHECK(found_by_doubles() == "");
        }
      }
    }
  }
}

TEST_CASE("results of a kernel that plans: cuDNN's adapter, on a double of cuDNN") {
  using adapter = orrery::device_cudnn<orrery::bfloat16, cudnn_double::engine, cuda_test::streamed_device>;
  const auto on_nccl = [&](int ranks, auto&& body) { run(ranks, {}, body); };
  start(devices(4));
  cudnn_double::reset();
  for (const orrery::any_topology& topology : {orrery::any_topology{orrery::wallfacer<2>{}}, {orrery::ulysses{}}}) {
    const orrery::attention_shape shape{.length = 26, .query_heads = 6, .key_heads = 3, .head_dim = 8};
    CHECK(cuda_test::failures<orrery::any_topology, adapter, nccl::world>(on_nccl, 4, shape, orrery::causal{},
                                                                          orrery::zigzag{}, 2, topology) == "");
  }
  CHECK(found_by_doubles() == "");
  CHECK(cudnn_double::all.faults == "");
}

TEST_CASE("the exchanges of a step are one group; an all-gather is NCCL's own") {
  // Rank 0 of a ring of three: K and V of 4 keys, 2 heads and dimension 2, in double, to the next rank, twice.
  start(devices(3));
  run(3, {}, [](auto& on) {
    orrery::attention<orrery::ring, kernel> attend{on, small};
    trainer<orrery::ring> mine{on};
    mine.tensors.forward(mine.attend);
  });
  std::vector<std::string> groups;
  for (const std::string& one : nccl_double::calls_of(0)) {
    if (one.find("group") == 0) groups.push_back(one);
  }
  CHECK(groups == std::vector<std::string>(2, "group: send 256 to 1, receive 256 from 2"));

  // Teams of two gather queries and keys.
  for (const bool native : {true, false}) {
    start(devices(4));
    int before = 0;
    int after = 0;
    run(4, {.native_all_gather = native}, [&](auto& on) {
      trainer<orrery::wallfacer<2>> mine{on};
      on.barrier();
      if (on.rank() == 0) before = nccl_double::calls("ncclAllGather");
      on.barrier();
      mine.tensors.forward(mine.attend);
      on.synchronize();
      on.barrier();
      if (on.rank() == 0) after = nccl_double::calls("ncclAllGather");
      on.barrier();
    });
    // The barriers' own are eight or twelve.
    CHECK((after - before > 12) == native);
    CHECK(found_by_doubles() == "");
  }
}

TEST_CASE("a rank that never comes: the others abort after the deadline, and nothing hangs") {
  start(devices(3));
  std::promise<void> over;
  const std::shared_future<void> until = over.get_future().share();
  std::atomic<int> stopped{0};
  std::vector<std::string> said(3);
  CHECK(sentence_of([&] {
          run(3, {.deadline = 0.5}, [&](auto& on) {
            trainer<orrery::ring> mine{on};
            if (on.rank() == 2) return until.wait();
            try {
              mine.step();
              on.synchronize();
            } catch (const orrery::transport_error& e) {
              said[static_cast<std::size_t>(on.rank())] = e.what();
              CHECK_FALSE(on.usable());
              CHECK(sentence_of([&] { on.barrier(); }) == e.what());
              if (++stopped == 2) over.set_value();
              throw;
            }
          });
        }) != "");
  for (const int rank : {0, 1}) {
    CHECK(said[static_cast<std::size_t>(rank)] ==
          "orrery: rank " + std::to_string(rank) + " stops: rank " + std::to_string(rank) +
              " has waited 0.5 s for its stream: for a peer that has not come, or a kernel that does not end; its "
              "communicators are aborted, and this world cannot be used any more");
  }
  CHECK(found_by_doubles() == "");
}

TEST_CASE("an error that NCCL tells of later stops the next call, and a wait") {
  for (const bool waiting : {false, true}) {
    start(devices(2));
    std::vector<std::string> said(2);
    static_cast<void>(sentence_of([&] {
      run(2, {.deadline = 20}, [&](auto& on) {
        trainer<orrery::ring> mine{on};
        mine.step();
        on.synchronize();
        on.barrier();
        nccl_double::set_async_error(on.rank(), ncclRemoteError);
        try {
          if (waiting) {
            on.barrier();
          } else {
            mine.step();
          }
        } catch (const orrery::transport_error& e) {
          said[static_cast<std::size_t>(on.rank())] = e.what();
          throw;
        }
      });
    }));
    for (const std::string& one : said) {
      says(one, "NCCL has failed on rank ");
      says(one, "remote process exited or there was a network error; its communicators are aborted");
    }
    CHECK(found_by_doubles() == "");
  }
}

TEST_CASE("a call of NCCL or CUDA that fails is a sentence with its name, and nothing hangs or leaks") {
  for (const char* function :
       {"ncclSend", "ncclRecv", "ncclGroupStart", "ncclGroupEnd", "ncclCommSplit", "ncclAllGather"}) {
    for (const int nth : {1, 4}) {
      start(devices(3));
      nccl_double::fail(function, nth, ncclSystemError);
      const std::string sentence = sentence_of([] {
        run(3, {.deadline = 0.5}, [](auto& on) {
          trainer<orrery::ring> mine{on};
          try {
            mine.step();
            on.synchronize();
          } catch (const orrery::transport_error& e) {
            // Whoever is not the first to fail waits for it.
            if (std::string{e.what()}.find("unhandled") == std::string::npos) return;
            throw;
          }
        });
      });
      INFO(function, " ", nth);
      if (std::string{function} != "ncclCommSplit" && std::string{function} != "ncclAllGather") {
        says(sentence, std::string{"orrery: rank "});
        says(sentence, function + std::string{" failed"});
        says(sentence, "unhandled system error");
      }
      CHECK(sentence != "");
      CHECK(found_by_doubles() == "");
    }
  }
  for (const char* function : {"cudaEventRecord", "cudaStreamWaitEvent", "cudaMalloc", "cudaLaunchHostFunc"}) {
    start(devices(3));
    cuda_double::fail(function, 7, cudaErrorIllegalAddress);
    INFO(function);
    CHECK(sentence_of([] {
            run(3, {.deadline = 0.5}, [](auto& on) {
              trainer<orrery::ring> mine{on};
              mine.step();
              on.synchronize();
            });
          }) != "");
    CHECK(found_by_doubles() == "");
  }
}

TEST_CASE("arguments that cannot be, and ranks that do not fit") {
  start(devices(2));
  CHECK(sentence_of([] {
          const nccl::world none{nullptr, nullptr};
        }) == "orrery: nccl::world: the communicator is null; make one by ncclCommInitRank or nccl::join");
  says(sentence_of([] { run(2, {.deadline = -1}, [](auto&) {}); }),
       "orrery: nccl::options: deadline is -1.000000, expected a positive number of seconds");
  // A rank that joins alone.
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  CHECK(sentence_of([&] { static_cast<void>(nccl::join(id, 0, 2, 0.2)); }) ==
        "orrery: rank 0 of 2: ncclCommInitRankConfig is not done before the deadline: another rank has not come to it");
  CHECK(found_by_doubles() == "");
  // Both ends of a message must agree about its size; the world stays usable.
  start(devices(2));
  run(2, {}, [](auto& on) {
    orrery::builder schedule{on.rank(), 2};
    schedule.shift(orrery::key(on.rank()), +1);
    schedule.next_step();
    orrery::program p = schedule;
    orrery::finish(p);
    const orrery::device_memory memory{64};
    const std::int64_t bytes = on.rank() == 0 ? 32 : 16;
    says(sentence_of([&] {
           const auto channel = on.open(p, {{{{memory.data(), bytes}}, {{memory.data() + 32, 32}}}});
         }),
         "orrery: rank 1 sends to rank 0 other messages than that expects");
    CHECK(on.usable());
    std::vector<double> sums{1.0 + on.rank(), 10};
    on.all_reduce_sum(std::span<double>{sums});
    CHECK(sums == std::vector<double>{3, 20});
  });
  CHECK(found_by_doubles() == "");
}
