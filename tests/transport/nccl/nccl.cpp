// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The transport `nccl` on doubles of NCCL and of the CUDA runtime: the conformance suite, what is called, and graphs.
#include "orrery/transport/nccl.hpp"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/device_cudnn.cuh"
#include "orrery/layout/chunked.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/concentric.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/tune/balanced.hpp"
#include "orrery/verify/verify.hpp"

#include "device/messages.hpp"
#include "device/streamed_device.hpp"
#include "kernel/cudnn/double.hpp"
#include "support/any.hpp"
#include "transport/nccl/ranks.hpp"

namespace {

using cuda_test::message_of_exception;
using cuda_test::says;
using namespace nccl_test;

template <class Topology>
std::string failures(int world, const orrery::attention_shape& shape, const nccl::options& options, std::uint64_t seed,
                     const Topology& topology = {}) {
  start(devices(world, seed));
  const auto on_nccl = [&](int ranks, auto&& body) { run(ranks, options, body); };
  return cuda_test::failures<Topology, kernel, nccl::world>(on_nccl, world, shape, any::mask{.ahead = 0},
                                                            orrery::zigzag{}, seed, topology) +
         found_by_doubles();
}

/// Three ranks exchange keys in pairs, each first with the next one: in the order of their steps, all wait for each
/// other.
struct crossing {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    const int next = (rank + 1) % world;
    const int previous = (rank + world - 1) % world;
    schedule.begin_exchange(next, next, {0, 2});
    schedule.send(orrery::key(rank));
    schedule.receive(orrery::key(next));
    schedule.next_step();
    schedule.begin_exchange(previous, previous);
    schedule.send(orrery::key(rank));
    schedule.receive(orrery::key(previous));
    schedule.interact(orrery::query(rank), orrery::key(rank));
    schedule.next_step();
    schedule.interact(orrery::query(rank), orrery::key(next));
    schedule.add_to_tile(orrery::key(previous));
    schedule.next_step();
    return schedule;
  }
};

/// A ring in which rank r begins r steps late: of two, a message is complete on one before the other's step of that
/// number begins.
struct late_ring {
  constexpr orrery::program program(int rank, int world) const {
    orrery::builder schedule{rank, world};
    for (int late = 0; late < rank; ++late) schedule.next_step();
    for (int hop = 0; hop < world; ++hop) {
      if (hop + 1 < world) schedule.shift(orrery::key(rank - hop), +1);
      schedule.interact(orrery::query(rank), orrery::key(rank - hop));
      schedule.next_step();
    }
    return schedule;
  }
};

}  // namespace

TEST_CASE("results") {
  std::uint64_t seed = 0;
  for (const bool native : {true, false}) {
    const nccl::options options{
        .native_all_gather = native, .native_all_to_all = native, .watchdog_period = native ? 0.01 : 0};
    for (const int world : {1, 2, 3, 4, 7, 8}) {
      for (const orrery::any_topology& topology : any::topologies()) {
        for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
          if (topology.unsupported_reason(world) != nullptr || topology.unsupported_reason(world, circulate) != nullptr)
            continue;
          ++seed;
          const orrery::attention_shape shape{.length = seed % 3 == 0 ? 23 : 16,
                                              .query_heads = 8,
                                              .key_heads = 4,
                                              .head_dim = 3,
                                              .circulate = circulate};
          INFO(topology.name(), " over ", world, ", ", orrery::name_of(circulate));
          CHECK(failures(world, shape, options, seed, topology) == "");
        }
      }
    }
  }
}

TEST_CASE("schedules of chunks, pruned for their mask") {
  constexpr orrery::attention_shape shape{.length = 37, .query_heads = 4, .key_heads = 2, .head_dim = 3};
  constexpr any::mask causal{.ahead = 0}, window{.reach = 5, .ahead = 0};
  std::uint64_t seed = 0;
  for (const int world : {2, 3, 4}) {
    for (const any::mask& mask : {causal, window}) {
      for (const conformance::any_layout& layout :
           {conformance::any_layout{orrery::chunked{orrery::contiguous{}, 3}},
            conformance::any_layout{orrery::balanced(causal, world, {.length = shape.length, .chunks = 2})}}) {
        for (const orrery::any_topology& topology :
             {orrery::any_topology{orrery::ring{}}, {orrery::concentric<2>{}}, {orrery::usp<2>{}}}) {
          if (topology.unsupported_reason(world) != nullptr) continue;
          INFO(topology.name(), " over ", world, ", ", mask.name(), ", ", layout.name());
          start(devices(world, ++seed));
          const auto on_nccl = [&](int ranks, auto&& body) { run(ranks, {.watchdog_period = 0}, body); };
          CHECK(cuda_test::failures<orrery::any_topology, kernel, nccl::world>(on_nccl, world, shape, mask, layout,
                                                                               seed, topology) == "");
          CHECK(found_by_doubles() == "");
        }
      }
    }
  }
}

TEST_CASE("results of a kernel with a plan: the adapter of cuDNN, on a double of cuDNN") {
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

TEST_CASE("schedules whose ranks do not post both ends of a message in one step") {
  REQUIRE(orrery::verify(crossing{}, 3));
  REQUIRE(orrery::verify(late_ring{}, 2));
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    CHECK(failures<crossing>(3, small, {.deadline = 20}, seed) == "");
    CHECK(failures<late_ring>(2, small, {.deadline = 20}, seed) == "");
  }
}

TEST_CASE("the exchanges of a step are one group; all-gathers and all-to-alls are NCCL's own, if all ranks want it") {
  // Rank 0 of a ring of three: K and V of 4 keys, 2 heads and dimension 2, in double, to the next rank, twice.
  start(devices(3));
  run(3, {}, [](auto& on) {
    trainer<orrery::ring> local{on};
    local.tensors.forward(local.attend);
  });
  std::vector<std::string> groups;
  for (const std::string& one : nccl_double::calls_of(0)) {
    if (one.find("group") == 0) groups.push_back(one);
  }
  CHECK(groups == std::vector<std::string>(2, "group: send 256 to 1, receive 256 from 2"));

  // Rank 0's native calls of a forward, and groups.
  const auto calls = [](auto topology, const std::function<nccl::options(int)>& options) {
    start(devices(4));
    std::vector<std::string> before;
    std::vector<std::string> after;
    run_each(4, options, [&](auto& on) {
      trainer<decltype(topology)> local{on, {.length = 16, .query_heads = 4, .head_dim = 2}};
      if (on.rank() == 0) before = nccl_double::calls_of(0);
      local.tensors.forward(local.attend);
      on.synchronize();
      if (on.rank() == 0) after = nccl_double::calls_of(0);
    });
    CHECK(found_by_doubles() == "");
    after.erase(after.begin(), after.begin() + static_cast<std::ptrdiff_t>(before.size()));
    const auto count = [&](const char* kind) {
      return std::count_if(after.begin(), after.end(), [&](const std::string& one) { return one.find(kind) == 0; });
    };
    return std::to_string(count("all-gather")) + " all-gathers, " + std::to_string(count("all-to-all")) +
           " all-to-alls, " + std::to_string(count("group")) + " groups";
  };
  const auto gathers = [](bool native) { return [=](int) { return nccl::options{.native_all_gather = native}; }; };
  const auto exchanges = [](bool native) { return [=](int) { return nccl::options{.native_all_to_all = native}; }; };
  // Teams of two gather queries and keys, and reduce.
  CHECK(calls(orrery::wallfacer<2>{}, gathers(true)) == "2 all-gathers, 0 all-to-alls, 1 groups");
  CHECK(calls(orrery::wallfacer<2>{}, gathers(false)) == "0 all-gathers, 0 all-to-alls, 3 groups");
  CHECK(calls(orrery::wallfacer<2>{}, [](int rank) { return nccl::options{.native_all_gather = rank != 1}; }) ==
        "0 all-gathers, 0 all-to-alls, 3 groups");
  CHECK(calls(orrery::ulysses{}, exchanges(true)) == "0 all-gathers, 2 all-to-alls, 0 groups");
  CHECK(calls(orrery::ulysses{}, exchanges(false)) == "0 all-gathers, 0 all-to-alls, 2 groups");
  CHECK(calls(orrery::ulysses{}, [](int rank) { return nccl::options{.native_all_to_all = rank != 1}; }) ==
        "0 all-gathers, 0 all-to-alls, 2 groups");
}

TEST_CASE("a step has one group end, however many lanes its messages travel in") {
  // Of a forward and a backward of all ranks: steps that post something, bursts of messages, and NCCL's group ends.
  struct counted {
    int steps = 0;
    int batches = 0;
    int ends = 0;
  };
  const auto count = [](auto topology, orrery::pass circulate, orrery::operand_messages by) {
    constexpr int ranks = 8;
    start(devices(ranks));
    counted all;
    std::barrier together{ranks};
    const auto batches = [] {
      int sum = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        for (const std::string& one : nccl_double::calls_of(rank)) sum += one.find("group") == 0 ? 1 : 0;
      }
      return sum;
    };
    run(ranks, {.native_all_gather = false}, [&](auto& on) {
      trainer<decltype(topology)> local{
          on, {.length = 32, .query_heads = 8, .head_dim = 2, .circulate = circulate, .operand_messages = by}};
      together.arrive_and_wait();
      if (on.rank() == 0) all = {0, -batches(), -nccl_double::calls("ncclGroupEnd")};
      together.arrive_and_wait();
      local.step();
      on.synchronize();
      together.arrive_and_wait();
      if (on.rank() == 0) all = {0, all.batches + batches(), all.ends + nccl_double::calls("ncclGroupEnd")};
    });
    CHECK(found_by_doubles() == "");
    for (int rank = 0; rank < ranks; ++rank) {
      for (const orrery::pass p : {orrery::pass::forward, circulate}) {
        for (const orrery::schedule::step& one : orrery::program_of(topology, rank, ranks, p).steps) {
          all.steps += one.exchanges.count > 0 ? 1 : 0;
        }
      }
    }
    return all;
  };
  using enum orrery::pass;
  const auto check = [&](auto topology, orrery::pass circulate, int batches, int more) {
    INFO(orrery::name_of(topology), ", ", orrery::name_of(circulate));
    const counted of = count(topology, circulate, orrery::operand_messages::per_block);
    CHECK(of.batches == batches);
    CHECK(of.ends == of.steps + more);
  };
  check(orrery::ring{}, circulate_keys, 168, 0);
  check(orrery::ring{}, circulate_queries, 168, 0);
  check(orrery::double_ring<4>{}, circulate_keys, 168, 0);
  check(orrery::usp<2>{}, circulate_keys, 104, 0);
  // Where a forward's first step sends both queries and keys, the queries, which are given first, leave first.
  check(orrery::wallfacer<2>{}, circulate_queries, 98, 8);
  check(orrery::concentric<2, 2>{}, circulate_keys, 80, 8);
  // Tensors that are handed over one by one leave one by one.
  const counted of = count(orrery::ring{}, circulate_keys, orrery::operand_messages::per_tensor);
  CHECK(of.ends == of.steps + 8);
}

TEST_CASE("a forward and backward captured into a graph give the same bits at every launch, as the calls do") {
  for (const bool native : {true, false}) {
    start(devices(4));
    std::atomic<bool> open{false};
    std::barrier together{4};  // no rank asks its stream for anything while another captures
    const nccl::options options{.native_all_gather = native, .native_all_to_all = native, .watchdog_period = 0.001};
    CHECK(message_of_exception([&] {
            run(4, options, [&](auto& on) {
              trainer<orrery::all_to_all<2, orrery::ring>> local{on, {.length = 16, .query_heads = 4, .head_dim = 2}};
              local.step();
              const std::string expected = local.results(on);
              // A call that has not ended when the capture begins, which the watchdog asks about meanwhile.
              orrery::detail::check_cuda(
                  cuda_double::enqueue(on.stream(), {"a gate", {}, {}}, [&] { return open.load(); }), "");
              local.step();
              together.arrive_and_wait();
              cudaGraph_t captured = nullptr;
              cudaGraphExec_t graph = nullptr;
              orrery::detail::check_cuda(cudaStreamBeginCapture(on.stream(), cudaStreamCaptureModeGlobal), "begin");
              local.step();
              const int asked = cuda_double::calls("cudaEventQuery");
              while (cuda_double::calls("cudaEventQuery") < asked + 8) std::this_thread::yield();
              orrery::detail::check_cuda(cudaStreamEndCapture(on.stream(), &captured), "end");
              together.arrive_and_wait();
              open.store(true);
              cuda_double::wake();
              orrery::detail::check_cuda(cudaGraphInstantiate(&graph, captured, 0), "instantiate");
              CHECK(local.results(on) == expected);  // of the call before
              for (int i = 0; i < 3; ++i) {
                on.watch([&] { orrery::detail::check_cuda(cudaGraphLaunch(graph, on.stream()), "launch"); });
                CHECK(local.results(on) == expected);
              }
              local.step();  // and calls go on
              CHECK(local.results(on) == expected);
              orrery::detail::check_cuda(cudaGraphExecDestroy(graph), "destroy");
              orrery::detail::check_cuda(cudaGraphDestroy(captured), "destroy");
            });
          }) == "");
    CHECK(found_by_doubles() == "");
  }
}

namespace {

/// Sees, in its rank's thread, whether it is enqueued beside messages that NCCL is still enqueuing.
struct looking_kernel : kernel {
  static inline thread_local int beside = 0;

  template <orrery::mask Mask>
  static void forward(const context& options, std::span<const orrery::forward_queries<storage, accumulator>> queries,
                      std::span<const orrery::forward_keys<storage>> keys, const orrery::head_map& heads,
                      accumulator scale, const Mask& mask) {
    int rank = 0;
    orrery::detail::check_cuda(cudaGetDevice(&rank), "cudaGetDevice");
    beside += nccl_double::is_enqueuing(rank) ? 1 : 0;
    kernel::forward(options, queries, keys, heads, scale, mask);
  }
};

}  // namespace

TEST_CASE("a tile is enqueued while NCCL enqueues its step's messages, but not into a graph") {
  start(devices(2));
  run(2, {}, [](auto& on) {
    cuda_test::trainer<orrery::ring, looking_kernel, nccl::world> local{on, small, orrery::full{}};
    local.step();
    CHECK(looking_kernel::beside == 1);
    on.synchronize();
    cudaGraph_t captured = nullptr;
    orrery::detail::check_cuda(cudaStreamBeginCapture(on.stream(), cudaStreamCaptureModeThreadLocal), "begin");
    local.step();
    orrery::detail::check_cuda(cudaStreamEndCapture(on.stream(), &captured), "end");
    orrery::detail::check_cuda(cudaGraphDestroy(captured), "destroy");
    CHECK(looking_kernel::beside == 1);
  });
  CHECK(found_by_doubles() == "");
}

TEST_CASE("between begin and finish of a call ranks can meet, and make another operator") {
  start(devices(2));
  run(2, {}, [](auto& on) {
    orrery::attention_shape shape = small;
    shape.operand_messages = orrery::operand_messages::per_tensor;
    trainer<orrery::ring> local{on, shape};
    local.step();
    const std::string expected = local.results(on);
    {
      auto call = local.attend.begin_forward(local.tensors.out.view(), local.tensors.lse.view());
      call.queries(local.tensors.q.view());
      call.keys(local.tensors.k.view());
      CHECK(nccl_double::is_enqueuing(on.rank()));
      on.barrier();
      call.values(local.tensors.v.view());
      CHECK(nccl_double::is_enqueuing(on.rank()));
      trainer<orrery::ulysses> other{on};
      call.finish();
    }
    local.tensors.backward(local.attend);
    CHECK(local.results(on) == expected);
  });
  CHECK(found_by_doubles() == "");
}

TEST_CASE("the watchdog checks while calls are made, also more than it has timers for") {
  start(devices(3));
  run(3, {.deadline = 20, .watchdog_period = 0.0002}, [](auto& on) {
    trainer<orrery::wallfacer<1>> local{on};
    local.step();
    const std::string expected = local.results(on);
    for (int i = 0; i < 60; ++i) local.step();
    CHECK(local.results(on) == expected);
    CHECK(on.usable());
  });
  CHECK(found_by_doubles() == "");
}

TEST_CASE("calls of NCCL run at the greatest priority, with as many blocks as the options say") {
  for (const int most : {0, 4}) {
    start(devices(2));
    run(2, {.max_ctas = most}, [](auto& on) {
      trainer<orrery::ring> local{on};
      local.step();
      on.synchronize();
    });
    CHECK(nccl_double::priorities() == std::set<int>{cuda_double::greatest_priority});
    CHECK(nccl_double::max_ctas() == std::set<int>{most == 0 ? NCCL_CONFIG_UNDEF_INT : most});
    CHECK(found_by_doubles() == "");
  }
}
