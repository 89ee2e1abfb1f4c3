// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Ranks that do not come, on doubles of NCCL and of the CUDA runtime: what the transport `nccl` tells the others, at
// the deadline, wherever these wait. Nothing hangs, and nothing leaks.
#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/nccl.hpp"
#include "orrery/transport/nccl/watchdog.hpp"

#include "device/messages.hpp"
#include "transport/nccl/ranks.hpp"

namespace {

using cuda_test::message_of_exception;
using cuda_test::says;
using namespace nccl_test;

constexpr const char* aborted = "; its communicators are aborted, and this world cannot be used any more";

/// Three ranks make a step, if `first`; then rank 2 stands still, and the others do `more`. What their worlds say then:
/// at that, or at the next call. Ends when all of them have said something.
template <class Kernel = kernel, class More>
std::vector<std::string> without_rank_2(bool first, const nccl::options& options, const More& more) {
  start(devices(3));
  std::promise<void> over;
  const std::shared_future<void> until = over.get_future().share();
  std::atomic<int> stopped{0};
  std::vector<std::string> said(3);
  static_cast<void>(message_of_exception([&] {
    run(3, options, [&](auto& on) {
      cuda_test::trainer<orrery::ring, Kernel, nccl::world> local{on, small, orrery::full{}};
      if (first) local.step();
      on.synchronize();
      on.barrier();
      if (on.rank() == 2) return until.wait();
      try {
        more(on, local);
        on.barrier();
      } catch (const orrery::transport_error& e) {
        said[static_cast<std::size_t>(on.rank())] = e.what();
        CHECK_FALSE(on.usable());
        CHECK(message_of_exception([&] { on.barrier(); }) == e.what());
        CHECK(message_of_exception([&] { local.step(); }) == e.what());
        bool launched = false;
        CHECK(message_of_exception([&] { on.watch([&] { launched = true; }); }) == e.what());
        CHECK_FALSE(launched);
      }
      if (++stopped == 2) over.set_value();
      throw std::runtime_error{"this rank ends"};
    });
  }));
  CHECK(found_by_doubles() == "");
  return said;
}

/// Ring, rank r of three, in its first wait: for both messages of its first hop.
std::string waits_in_step_1(int rank, const char* because) {
  const std::string who = "rank " + std::to_string(rank);
  return "orrery: " + who + " stops: " + because + "in step 1 for key shard " + std::to_string((rank + 2) % 3) +
         " from rank " + std::to_string((rank + 2) % 3) + ", or for another of 2 messages" + aborted;
}

/// Waits for its stream before it is enqueued, as where CUDA takes nothing more of it.
struct waiting_kernel : kernel {
  static inline std::atomic<bool> waits{false};

  template <orrery::mask Mask>
  static void forward(const context& options, std::span<const orrery::forward_queries<storage, accumulator>> queries,
                      std::span<const orrery::forward_keys<storage>> keys, const orrery::head_map& heads,
                      accumulator scale, const Mask& mask) {
    if (waits) orrery::detail::check_cuda(cudaStreamSynchronize(options.stream), "cudaStreamSynchronize");
    kernel::forward(options, queries, keys, heads, scale, mask);
  }
};

/// A forward, captured into a graph.
class captured_step {
 public:
  template <class World, class Trainer>
  captured_step(World& on, Trainer& local) {
    orrery::detail::check_cuda(cudaStreamBeginCapture(on.stream(), cudaStreamCaptureModeThreadLocal), "begin");
    local.tensors.forward(local.attend);
    orrery::detail::check_cuda(cudaStreamEndCapture(on.stream(), &captured_), "end");
    orrery::detail::check_cuda(cudaGraphInstantiate(&graph_, captured_, 0), "instantiate");
  }
  captured_step(const captured_step&) = delete;
  captured_step& operator=(const captured_step&) = delete;
  ~captured_step() {
    cudaGraphExecDestroy(graph_);
    cudaGraphDestroy(captured_);
  }
  template <class World>
  void launch(World& on) const {
    orrery::detail::check_cuda(cudaGraphLaunch(graph_, on.stream()), "launch");
  }

 private:
  cudaGraph_t captured_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace

TEST_CASE("a rank that never comes to its first call: the others wait for NCCL, up to the deadline") {
  const auto said = without_rank_2(false, {.deadline = 0.5}, [](auto& on, auto& local) {
    local.step();
    on.synchronize();
  });
  for (const int rank : {0, 1}) {
    CHECK(said[static_cast<std::size_t>(rank)] ==
          waits_in_step_1(rank, "ncclGroupEnd is not done before the deadline: another rank has not come to it, "));
  }
}

TEST_CASE(
    "a rank that makes no world: the others wait for it up to the deadline, whether the communicator blocks or not") {
  const auto joined = [](const ncclUniqueId& id, int rank, bool blocking) {
    ncclConfig_t config = nccl::not_blocking();
    config.blocking = blocking ? 1 : 0;
    nccl::communicator made;
    const ncclResult_t result = ncclCommInitRankConfig(made.address(), 2, id, rank, &config);
    CHECK(nccl::wait_for(made.get(), result, "ncclCommInitRankConfig", orrery::detail::deadline_in(20)) == "");
    return made;
  };
  for (const bool blocking : {true, false}) {
    for (const bool comes : {true, false}) {
      INFO("blocking ", blocking, ", rank 1 comes ", comes);
      start(devices(2));
      ncclUniqueId id;
      ncclGetUniqueId(&id);
      std::promise<void> over;
      std::string said;
      std::thread other{[&] {
        orrery::detail::check_cuda(cudaSetDevice(1), "cudaSetDevice");
        const orrery::detail::cuda_stream stream;
        const nccl::communicator comm = joined(id, 1, blocking);
        if (comes) {
          nccl::world world{comm.get(), stream.get(), {.deadline = 20}};
          trainer<orrery::ring>{world}.step();
          world.synchronize();
        } else {
          over.get_future().wait();
        }
      }};
      {
        const orrery::detail::cuda_stream stream;
        nccl::communicator comm = joined(id, 0, blocking);
        said = message_of_exception([&] {
          nccl::world world{comm.get(), stream.get(), {.deadline = comes ? 20 : 0.3}};
          trainer<orrery::ring>{world}.step();
          world.synchronize();
        });
        if (!comes) comm.abort();  // it is the trainer's
        over.set_value();
      }
      other.join();
      CHECK(said ==
            (comes
                 ? ""
                 : "orrery: rank 0 stops: rank 0 makes a communicator, and ncclCommSplit " +
                       std::string{
                           blocking
                               ? "does not return before the deadline: another rank has not come to it, and the "
                                 "trainer's communicator is blocking, so that a thread waits in it until ncclCommAbort "
                                 "is called on it; make it not blocking, as nccl::join does"
                               : "is not done before the deadline: another rank has not come to it"} +
                       aborted));
      CHECK(found_by_doubles() == "");
    }
  }
}

TEST_CASE("a rank that stops later: the others wait on the device") {
  for (const double watchdog_period : {0.0, 0.02}) {
    const auto said =
        without_rank_2(true, {.deadline = 0.5, .watchdog_period = watchdog_period}, [](auto& on, auto& local) {
          local.tensors.forward(local.attend);
          on.synchronize();
        });
    for (const int rank : {0, 1}) {
      const std::string who = "rank " + std::to_string(rank);
      CHECK(said[static_cast<std::size_t>(rank)] ==
            (watchdog_period > 0 ? waits_in_step_1(rank, (who + " has waited 0.5 s ").c_str())
                                 : "orrery: " + who + " stops: " + who +
                                       " has waited 0.5 s for its stream: for a peer that has not come, or a kernel "
                                       "that does not end" +
                                       aborted));
    }
  }
}

TEST_CASE("a trainer that waits in cudaStreamSynchronize does not hang: the watchdog releases its stream") {
  // One call, many calls of one plan, of which the first waits, and more than there are marks for.
  for (const int calls : {1, 5, 200}) {
    const auto said = without_rank_2(true, {.deadline = 0.3, .watchdog_period = 0.02}, [&](auto& on, auto& local) {
      for (int i = 0; i < calls; ++i) local.tensors.forward(local.attend);
      orrery::detail::check_cuda(cudaStreamSynchronize(on.stream()), "cudaStreamSynchronize");
    });
    for (const int rank : {0, 1}) {
      const std::string& one = said[static_cast<std::size_t>(rank)];
      const std::string who = "rank " + std::to_string(rank);
      if (calls == 1) {
        CHECK(one == waits_in_step_1(rank, (who + " has waited 0.3 s ").c_str()));
      } else {
        says(one, "orrery: " + who + " stops: " + who + " has waited 0.3 s ");
        says(one, aborted);
      }
    }
  }
}

TEST_CASE("the same in a backward, whose lanes wait for each other: all communicators are aborted together") {
  for (const int version : {NCCL_VERSION_CODE, 22105}) {  // with a group, and with a thread for each
    const auto said = without_rank_2(true, {.deadline = 0.3, .watchdog_period = 0.02}, [&](auto& on, auto& local) {
      nccl_double::set_version(version);
      local.step();
      orrery::detail::check_cuda(cudaStreamSynchronize(on.stream()), "cudaStreamSynchronize");
    });
    for (const int rank : {0, 1}) says(said[static_cast<std::size_t>(rank)], aborted);
  }
}

TEST_CASE("the same for the launch of a graph, which lives on until the rank knows") {
  const auto said = without_rank_2(true, {.deadline = 0.3, .watchdog_period = 0.02}, [](auto& on, auto& local) {
    const captured_step graph{on, local};
    on.watch([&] { graph.launch(on); });
    orrery::detail::check_cuda(cudaStreamSynchronize(on.stream()), "cudaStreamSynchronize");
    on.barrier();
  });
  for (const int rank : {0, 1}) {
    says(said[static_cast<std::size_t>(rank)],
         "has waited 0.3 s for its stream: for a peer that has not come, or a kernel that does not end");
  }
}

TEST_CASE("a world that is destroyed before the graph of its calls waits up to the deadline, not for the graph") {
  for (const bool stops : {false, true}) {
    start(devices(2));
    std::vector<std::unique_ptr<captured_step>> graphs(2);
    static_cast<void>(message_of_exception([&] {
      run(2, {.deadline = 0.3}, [&](auto& on) {
        trainer<orrery::ring> local{on};
        local.step();
        on.synchronize();
        graphs[static_cast<std::size_t>(on.rank())] = std::make_unique<captured_step>(on, local);
        on.barrier();
        if (stops) throw std::runtime_error{"this rank ends"};
      });
    }));
    CHECK(nccl_double::calls("ncclCommAbort") == (stops ? 6 : 0));
    graphs.clear();
    CHECK(found_by_doubles() == "");
  }
}

TEST_CASE("an unfinished call of the host is late when the host stops") {
  using std::chrono::seconds;
  start(devices(1));
  {
    const orrery::detail::cuda_stream stream;
    nccl::call_timers marks{10};
    const auto now = nccl::call_timers::clock::now();
    marks.begin(stream.get(), nullptr);
    orrery::detail::check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
    CHECK(marks.overdue(now) == "");
    CHECK(marks.overdue(now + seconds{9}) == "");
    marks.go_on();
    CHECK(marks.overdue(now + seconds{11}) == "");
    CHECK(marks.overdue(now + seconds{20}) == "");
    says(marks.overdue(now + seconds{21}), "has waited 10 s ");
    marks.end(stream.get());
    orrery::detail::check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
    CHECK(marks.overdue(now + seconds{100}) == "");
  }
  CHECK(found_by_doubles() == "");
}

TEST_CASE("a rank that stops: the others are released inside a call in which CUDA blocks them") {
  const auto said =
      without_rank_2<waiting_kernel>(true, {.deadline = 0.3, .watchdog_period = 0.02}, [](auto& on, auto& local) {
        waiting_kernel::waits = true;
        local.tensors.forward(local.attend);
        on.synchronize();
      });
  waiting_kernel::waits = false;
  for (const int rank : {0, 1}) {
    CHECK(said[static_cast<std::size_t>(rank)] ==
          waits_in_step_1(rank, ("rank " + std::to_string(rank) + " has waited 0.3 s ").c_str()));
  }
}
