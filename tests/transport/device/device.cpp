// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The transport `device` on the runtime double: the conformance suite, and every order in which its streams may run.
#include "orrery/transport/device.hpp"

#include <atomic>
#include <cstdint>
#include <future>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/kernel/reference.hpp"
#include "orrery/layout/chunked.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/layout/per_document.hpp"
#include "orrery/topology/all_gather.hpp"
#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/any_topology.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/device_graph.hpp"
#include "orrery/tune/balanced.hpp"

#include "device/enqueued.hpp"
#include "device/messages.hpp"
#include "device/runtime_double.hpp"
#include "support/any.hpp"
#include "transport/collectives.hpp"
#include "transport/device/conformance.hpp"

namespace {

using cuda_test::message_of_exception;
using cuda_test::says;

namespace device = orrery::device;
using cuda_test::enqueued;

constexpr auto on_devices = [](int ranks, auto&& body) { device::run(ranks, body); };

/// Races, misuse and leaks, one a line.
std::string found_by_double() {
  cuda_test::enqueued_work::forget();
  std::string all;
  for (const std::string& one : cuda_double::faults()) all += one + "\n";
  return all + cuda_double::leaks();
}

template <class Kernel>
void check(int world, const orrery::any_topology& topology, orrery::attention_shape shape, const any::mask& mask,
           const conformance::any_layout& layout, const cuda_double::settings& options) {
  for (const orrery::pass circulate : {orrery::pass::circulate_keys, orrery::pass::circulate_queries}) {
    if (topology.unsupported_reason(world, orrery::pass::forward) != nullptr ||
        topology.unsupported_reason(world, circulate) != nullptr)
      continue;
    shape.circulate = circulate;
    cuda_double::reset(options);
    const std::string found = cuda_test::failures<orrery::any_topology, Kernel, device::world>(
        on_devices, world, shape, mask, layout, options.seed, topology);
    INFO(topology.name(), " over ", world, ", ", mask.name(), ", ", layout.name(), ", ", orrery::name_of(circulate));
    CHECK(found == "");
    CHECK(found_by_double() == "");
  }
}

const any::mask causal{.ahead = 0};

}  // namespace

TEST_CASE("results on one device") {
  std::uint64_t seed = 0;
  for (const int world : {1, 2, 3, 4, 7, 8}) {
    for (const orrery::any_topology& topology : any::topologies()) {
      check<enqueued<orrery::reference<double>>>(world, topology,
                                                 {.length = 23, .query_heads = 8, .key_heads = 4, .head_dim = 3},
                                                 causal, orrery::zigzag{}, {.seed = ++seed});
      check<enqueued<orrery::reference<double>>>(  // fewer tokens than ranks: empty messages
          world, topology, {.length = 3, .query_heads = 8, .head_dim = 2, .value_dim = 1, .key_length = 11}, {},
          orrery::contiguous{}, {.seed = ++seed});
    }
  }
}

TEST_CASE("schedules of chunks, pruned for their mask") {
  constexpr orrery::attention_shape shape{.length = 37, .query_heads = 4, .key_heads = 2, .head_dim = 3};
  constexpr any::mask window{.reach = 5, .ahead = 0}, holes{.reach = 11, .hole = 3};
  std::uint64_t seed = 0;
  for (const int world : {2, 3, 4, 8}) {
    for (const any::mask& mask : {causal, window, holes}) {
      for (const conformance::any_layout& layout :
           {conformance::any_layout{orrery::chunked{orrery::contiguous{}, 3}},
            conformance::any_layout{orrery::per_document<orrery::zigzag>{std::vector<std::int64_t>{20, 1, 12}}},
            conformance::any_layout{orrery::balanced(causal, world, {.length = shape.length, .chunks = 2})}}) {
        for (const orrery::any_topology& topology :
             {orrery::any_topology{orrery::ring{}}, {orrery::all_gather{}}, {orrery::usp<2>{}}}) {
          check<enqueued<orrery::reference<double>>>(world, topology, shape, mask, layout, {.seed = ++seed});
        }
      }
    }
    check<enqueued<orrery::reference<double>>>(world, orrery::half_ring{}, shape, causal, orrery::contiguous{},
                                               {.seed = ++seed});
  }
}

TEST_CASE("results on several devices, with and without access to each other's memory; partials of another type") {
  std::uint64_t seed = 0;
  for (const bool peer_access : {true, false}) {
    for (const orrery::any_topology& topology : any::topologies()) {
      check<enqueued<orrery::reference<float>>>(
          4, topology, {.batch = 2, .length = 21, .query_heads = 4, .head_dim = 3}, causal, orrery::striped<2>{},
          {.seed = ++seed, .compute_capabilities = {{9, 0}, {9, 0}, {9, 0}}, .peer_access = peer_access});
    }
    CHECK((cuda_double::calls("cudaMemcpyPeerAsync") > 0) == !peer_access);  // which graphs cannot hold everywhere
  }
  CHECK(cuda_double::calls("cudaDeviceEnablePeerAccess") == 0);
}

namespace {

using kernel = enqueued<orrery::reference<double>>;
const orrery::attention_shape small{.length = 12, .query_heads = 2, .head_dim = 2};

/// A rank that calls forward and backward so often.
template <class Topology>
void call(device::world& on, int times) {
  orrery::attention<Topology, kernel> attend{on, small, orrery::causal{}};
  const auto problem = oracle::random_problem<double>(conformance::oracle_shape(small), 1);
  const conformance::rank_tensors<kernel> host{problem, attend.query_positions(), attend.key_positions(), {}};
  cuda_test::device_tensors<kernel> tensors{host, on.stream()};
  for (int i = 0; i < times; ++i) {
    tensors.forward(attend);
    tensors.backward(attend);
  }
  tensors.fetch();
  on.synchronize();
}

}  // namespace

TEST_CASE("every wait is needed: the double notices if one is missing") {
  // Rank 1 writes its memory and sends it, rank 0 receives and reads it, call after call.
  const auto run = [] {
    device::run(2, [](auto& on) {
      orrery::builder schedule{on.rank(), 2};
      schedule.begin_exchange(on.rank() == 1 ? 0 : orrery::schedule::no_rank,
                              on.rank() == 0 ? 1 : orrery::schedule::no_rank);
      if (on.rank() == 1) schedule.send(orrery::key(1));
      if (on.rank() == 0) schedule.receive(orrery::key(1));
      schedule.next_step();
      orrery::program p = schedule;
      orrery::schedule::finish(p);
      const orrery::detail::device_memory memory{64};
      const orrery::piece all{memory.data(), 64};
      std::vector<orrery::exchange_pieces> pieces(1);
      (on.rank() == 1 ? pieces[0].sent : pieces[0].received).push_back(all);
      auto channel = on.open(p, pieces);
      const cuda_double::bytes touched{all.data, all.data + 64};
      for (int call = 0; call < 4; ++call) {
        channel.begin();
        if (on.rank() == 1) cuda_test::enqueued_work::enqueue(channel.context(), {"write", {}, {touched}}, [] {});
        channel.post(0);
        channel.await(0);
        if (on.rank() == 0) cuda_test::enqueued_work::enqueue(channel.context(), {"read", {touched}, {}}, [] {});
      }
    });
  };
  cuda_double::reset();
  run();
  CHECK(found_by_double() == "");
  CHECK(cuda_double::calls("cudaStreamWaitEvent") == 16);
  // All but those of the first copy, before which there is nothing, and of the last call, after which there is nothing.
  for (int nth = 3; nth <= 10; ++nth) {
    cuda_double::reset({.seed = static_cast<std::uint64_t>(nth)});
    cuda_double::ignore_wait(nth);
    run();
    INFO("wait ", nth);
    CHECK(found_by_double().find("race: ") == 0);
  }
}

TEST_CASE("a CUDA call that fails stops all ranks, with its name, and nothing leaks") {
  const auto run = [](const char* function, int nth, cudaError_t error, bool sticky) {
    cuda_double::reset();
    cuda_double::fail(function, nth, error, sticky);
    return message_of_exception(
        [] { device::run(3, {.deadline = 20}, [](auto& on) { call<orrery::double_ring<1>>(on, 2); }); });
  };
  for (const char* function :
       {"cudaSetDevice", "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaEventRecord",
        "cudaStreamWaitEvent", "cudaMemcpyAsync", "cudaLaunchHostFunc", "cudaMalloc"}) {
    for (const int nth : {1, 2, 5, 11}) {
      for (const bool sticky : {false, true}) {
        INFO(function, " ", nth, sticky ? ", sticky" : "");
        const std::string message = run(function, nth, cudaErrorIllegalAddress, sticky);
        const int calls = cuda_double::calls(function);
        if (calls < nth) continue;
        says(message, std::string{"orrery: "} + (sticky ? "" : function));
        says(message, "cudaErrorIllegalAddress");
        CHECK(cuda_double::leaks() == "");
        cuda_test::enqueued_work::forget();
      }
    }
  }
}

TEST_CASE("ranks in different collective calls") {
  collectives::check_all(3, 2, [](const auto& body) {
    cuda_double::reset();
    device::run(3, {.deadline = 3600}, [&](auto& on) {
      body(on, [](auto& world) { const orrery::attention<orrery::ring, kernel> attend{world, small}; });
    });
    CHECK(found_by_double() == "");
  });
}

TEST_CASE("a rank on which CUDA fails while it constructs, and which goes on: all ranks have its name") {
  int failures = 0;
  for (const char* function :
       {"cudaSetDevice", "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaMalloc"}) {
    for (int nth = 1; nth < 100; ++nth) {
      cuda_double::reset();
      std::vector<std::string> said(3, "nothing");
      std::atomic<int> culprit{-1};
      const std::string thrown = message_of_exception([&] {
        device::run(3, {.deadline = 3600}, [&](auto& on) {
          on.barrier();
          if (on.rank() == 0)
            cuda_double::fail(function, cuda_double::calls(function) + nth, cudaErrorIllegalAddress, false);
          on.barrier();
          std::string& local = said[static_cast<std::size_t>(on.rank())];
          float failed = 0;
          try {
            const orrery::attention<orrery::ring, kernel> attend{on, small, orrery::causal{}};
          } catch (const orrery::device_error&) {
            culprit = on.rank();
            failed = 1;
          } catch (const orrery::transport_error& e) {
            local = e.what();
          }
          try {
            on.all_reduce_sum(std::span{&failed, 1});
          } catch (const orrery::transport_error& e) {
            local = e.what();
          }
        });
      });
      INFO(function, " ", nth, ", thrown: ", thrown);
      CHECK(found_by_double() == "");
      if (culprit < 0) break;
      ++failures;
      for (std::size_t rank = 0; rank < 3; ++rank) {
        const std::string start = "orrery: rank " + std::to_string(rank) + " stops: rank " + std::to_string(culprit);
        says(said[rank], start + " failed while it ");
        says(said[rank], function);
      }
    }
  }
  CHECK(failures > 20);
}

TEST_CASE("too little memory when a plan is made is an error with a message") {
  cuda_double::reset({.memory = 3000});
  const std::string message = message_of_exception([] { device::run(2, [](auto& on) { call<orrery::ring>(on, 1); }); });
  says(message, "orrery: a plan needs ");
  says(message, " bytes more on device 0, where ");
  says(message, " of 3000 are free; free some, use more ranks or a topology with fewer slots");
  CHECK(found_by_double() == "");
}

TEST_CASE("invalid devices and options") {
  const auto nothing = [](auto&) {};
  cuda_double::reset({.compute_capabilities = {}});
  says(message_of_exception([&] { device::run(2, nothing); }), "orrery: cudaGetDeviceCount in ");
  CHECK(cudaGetLastError() == cudaSuccess);  // said is said
  cuda_double::reset({.compute_capabilities = {{9, 0}, {9, 0}, {8, 6}}});
  CHECK(message_of_exception([&] { device::run(2, nothing); }) ==
        "orrery: device::options: device 0 has compute capability 9.0 and device 2 has 8.6; kernels differ between the "
        "two, so name devices of one kind");
  CHECK(message_of_exception([&] { device::run(2, {.devices = {0, 1}}, nothing); }) == "");
  CHECK(message_of_exception([&] {
          device::run(2, {.devices = {0, 3}}, nothing);
        }) == "orrery: device::options: there is no device 3; this process sees 3");
  CHECK(message_of_exception([&] { device::run(0, nothing); }) ==
        "orrery: device::group: the number of ranks is 0, expected at least 1");
  CHECK(message_of_exception([&] { device::run(1, {.deadline = 0}, nothing); }) ==
        "orrery: device::options: deadline is 0.000000, expected a positive number of seconds");
  CHECK(message_of_exception([&] { device::run(2, {.devices = {0}, .streams = {nullptr}}, nothing); }) ==
        "orrery: device::options: there are 1 streams for 2 ranks; give one for each rank, or none");
  CHECK(found_by_double() == "");
}

TEST_CASE("a trainer's own streams") {
  cuda_double::reset();
  {
    const std::vector<orrery::detail::cuda_stream> streams(3);
    device::options options;
    for (const orrery::detail::cuda_stream& one : streams) options.streams.push_back(one.get());
    device::run(3, options, [&](auto& on) {
      CHECK(on.stream() == streams[static_cast<std::size_t>(on.rank())].get());
      call<orrery::all_gather>(on, 2);
    });
  }
  CHECK(found_by_double() == "");
}

TEST_CASE("a rank that never comes is named, and no thread waits for a device") {
  cuda_double::reset();
  std::promise<void> over;
  const std::shared_future<void> until = over.get_future().share();
  const std::string message = message_of_exception([&] {
    device::run(2, {.deadline = 0.2}, [&](auto& on) {
      orrery::attention<orrery::ring, kernel> attend{on, small};
      if (on.rank() == 1) return until.wait();
      const orrery::detail::device_memory memory{4096};
      auto* const numbers = reinterpret_cast<double*>(memory.data());
      const auto tensor = orrery::batch_sequence_head_dim(numbers, 1, 6, 2, 2);
      try {
        attend.forward(tensor, tensor, tensor, orrery::batch_sequence_head_dim(numbers + 128, 1, 6, 2, 2),
                       orrery::batch_head_sequence(numbers + 256, 1, 2, 6));
      } catch (...) {
        on.synchronize();
        over.set_value();
        throw;
      }
    });
  });
  says(message,
       "orrery: rank 0 stops: rank 0 has waited 0.2 s in step 1 for key shard 1 from rank 1; rank 1 is "
       "not waiting: it is late or stopped; this world cannot be used any more");
  CHECK(found_by_double() == "");
}

namespace {

/// Tensors of one rank, and its operator, in a world of the ring's.
struct trainer {
  orrery::attention<orrery::wallfacer<2>, kernel> attend;
  conformance::rank_tensors<kernel> host;
  cuda_test::device_tensors<kernel> tensors;
  device::world* on;

  explicit trainer(device::world& world)
      : attend{world, small, orrery::causal{}},
        host{oracle::random_problem<double>(conformance::oracle_shape(small), 1),
             attend.query_positions(),
             attend.key_positions(),
             {}},
        tensors{host, world.stream()},
        on{&world} {}

  void step() {
    tensors.forward(attend);
    tensors.backward(attend);
  }
  /// The bits of all results; their memory is poisoned for the next ones.
  std::string results() {
    tensors.fetch();
    on->synchronize();
    std::string bits = host.bits();
    host.poison();
    tensors.bring_results();
    return bits;
  }
};

}  // namespace

TEST_CASE("a graph of forward and backward, launched again and again, gives the same bits as the calls") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    cuda_double::reset({.seed = seed, .compute_capabilities = {{9, 0}, {9, 0}}});
    device::run(4, [](auto& on) {
      trainer local{on};
      local.step();
      const std::string expected = local.results();
      {
        auto step = device::capture(on, [&] { local.step(); });
        for (int i = 0; i < 3; ++i) {
          step.launch();
          if (local.results() != expected) throw std::runtime_error{"other bits"};
        }
      }
      local.step();
      if (local.results() != expected) throw std::runtime_error{"other bits after the graph"};
    });
    CHECK(found_by_double() == "");
  }
}

TEST_CASE("a capture that fails, on any rank, fails on all") {
  for (const int failing : {0, 2}) {
    cuda_double::reset();
    const std::string message = message_of_exception([&] {
      device::run(4, [&](auto& on) {
        trainer local{on};
        auto step = device::capture(on, [&] {
          if (on.rank() == failing) throw std::runtime_error{"no step"};
          local.step();
        });
      });
    });
    CHECK(message == "no step");
    CHECK(found_by_double() == "");
  }
  for (const char* function : {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"}) {
    cuda_double::reset();
    cuda_double::fail(function, 1, cudaErrorInvalidValue);
    says(message_of_exception([&] {
           device::run(4, [&](auto& on) {
             trainer local{on};
             auto step = device::capture(on, [&] { local.step(); });
           });
         }),
         std::string{"orrery: "} + function + " in ");
    CHECK(found_by_double() == "");
  }
}
