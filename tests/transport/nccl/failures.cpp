// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What the transport `nccl` does when something is wrong, on doubles of NCCL and of the CUDA runtime: calls that fail,
// devices that are lost or full, arguments that cannot be. (Of ranks that do not come, see stalled.cpp.) Nothing
// hangs, and nothing leaks.
#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/topology/all_to_all.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/wallfacer.hpp"
#include "orrery/transport/nccl.hpp"

#include "device/messages.hpp"
#include "transport/collectives.hpp"
#include "transport/nccl/ranks.hpp"

namespace {

using cuda_test::message_of_exception;
using cuda_test::says;
using namespace nccl_test;

constexpr const char* aborted = "; its communicators are aborted, and this world cannot be used any more";

}  // namespace

TEST_CASE("an asynchronous error of NCCL stops the next call, a wait, and a rank that does neither") {
  enum class then { calls, waits, computes };
  for (const then now : {then::calls, then::waits, then::computes}) {
    start(devices(2));
    std::vector<std::string> said(2);
    static_cast<void>(message_of_exception([&] {
      run(2, {.deadline = 20, .watchdog_period = now == then::computes ? 0.01 : 1}, [&](auto& on) {
        trainer<orrery::ring> local{on};
        local.step();
        on.synchronize();
        on.barrier();
        nccl_double::set_async_error(on.rank(), ncclRemoteError);
        while (now == then::computes && on.usable()) std::this_thread::yield();
        try {
          if (now == then::waits) {
            on.barrier();
          } else {
            local.step();
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

TEST_CASE("a call of NCCL or CUDA that fails is a message with its name") {
  for (const char* function :
       {"ncclSend", "ncclRecv", "ncclGroupStart", "ncclGroupEnd", "ncclCommSplit", "ncclAllGather", "ncclAlltoAll"}) {
    for (const int nth : {1, 4}) {
      const bool all_to_all = std::string{function} == "ncclAlltoAll";
      start(devices(3));
      nccl_double::fail(function, nth, ncclSystemError, "the cable is cut");
      const nccl::options options{.deadline = 0.3, .native_all_to_all = all_to_all};
      const std::string message = message_of_exception([&] {
        run(3, options, [&](auto& on) {
          const auto step = [&](auto local) {
            try {
              local->step();
              on.synchronize();
            } catch (const orrery::transport_error& e) {
              // Whoever is not the first to fail waits for it.
              if (std::string{e.what()}.find("unhandled") == std::string::npos) return;
              throw;
            }
          };
          const orrery::attention_shape shape{.length = 12, .query_heads = 3, .head_dim = 2};
          if (all_to_all) {
            step(std::make_unique<trainer<orrery::ulysses>>(on, shape));
          } else {
            step(std::make_unique<trainer<orrery::ring>>(on));
          }
        });
      });
      INFO(function, " ", nth);
      if (std::string{function} != "ncclCommSplit" && std::string{function} != "ncclAllGather") {
        says(message, std::string{"orrery: rank "});
        says(message, function + std::string{" failed"});
        says(message, "unhandled system error (the cable is cut)");
      }
      CHECK(message != "");
      CHECK(found_by_doubles() == "");
    }
  }
  for (const char* function : {"cudaEventRecord", "cudaStreamWaitEvent", "cudaMalloc", "cudaLaunchHostFunc",
                               "cudaEventCreateWithFlags", "cudaStreamCreateWithPriority", "cudaStreamIsCapturing"}) {
    start(devices(3));
    cuda_double::fail(function, 7, cudaErrorIllegalAddress);
    INFO(function);
    CHECK(message_of_exception([] {
            run(3, {.deadline = 0.3}, [](auto& on) {
              trainer<orrery::ring> local{on};
              for (int i = 0; i < 3; ++i) local.step();
              on.synchronize();
            });
          }) != "");
    CHECK(found_by_doubles() == "");
  }
}

TEST_CASE("a lost device: every call, and the world, reports it") {
  for (const char* function : {"cudaLaunchHostFunc", "cudaStreamQuery", "cudaEventRecord", "cudaEventQuery"}) {
    start(devices(2));
    std::vector<std::string> said(2);
    std::barrier together{2};  // the double's devices are lost together
    const std::string message = message_of_exception([&] {
      run(2, {.deadline = 1, .watchdog_period = 0.01}, [&](auto& on) {
        trainer<orrery::ring> local{on};
        local.step();
        on.synchronize();
        on.barrier();
        together.arrive_and_wait();
        if (on.rank() == 0) cuda_double::fail(function, 1, cudaErrorIllegalAddress, true);
        try {
          for (int i = 0; i < 1000; ++i) local.step();
          on.synchronize();
        } catch (...) {
          CHECK_FALSE(on.usable());
          said[static_cast<std::size_t>(on.rank())] = message_of_exception([&] { local.step(); });
          throw;
        }
      });
    });
    INFO(function, ": ", said[0], " / ", said[1]);
    CHECK(message.find("cudaErrorIllegalAddress") != std::string::npos);
    INFO(message);
    for (const std::string& one : said) says(one, aborted);
    cuda_test::enqueued_work::forget();
    CHECK(nccl_double::faults() == "");
    CHECK(cuda_double::leaks() == "");
  }
}

TEST_CASE("a full device when a plan is made: all ranks get the message, and continue") {
  cuda_double::settings enough = devices(4);
  enough.memory = std::size_t{16} << 20;
  start(enough);
  run(4, {.deadline = 20}, [](auto& on) {
    const orrery::attention_shape shape{.length = 1024, .query_heads = 4, .head_dim = 16};
    const auto free = [] {
      std::size_t left = 0;
      std::size_t total = 0;
      orrery::detail::check_cuda(cudaMemGetInfo(&left, &total), "cudaMemGetInfo");
      return static_cast<std::int64_t>(left);
    };
    const auto plan = [&] {
      const std::int64_t before = free();
      const orrery::attention<orrery::wallfacer<2>, kernel> attend{on, shape};
      return before - free();
    };
    const std::int64_t needed = plan();
    {
      // On rank 1 all but the last bytes are there: those into which keys are gathered.
      const orrery::detail::device_memory taken{on.rank() == 1 ? free() - needed + 1 : 0};
      const std::string message = message_of_exception([&] { static_cast<void>(plan()); });
      says(message, "orrery: rank 1: a plan needs ");
      says(message, " bytes more on device 1, where ");
      says(message, "free some, use more ranks or a topology with fewer slots");
      CHECK(on.usable());
    }
    on.barrier();
    CHECK(plan() == needed);
  });
  CHECK(found_by_doubles() == "");

  // On all ranks there is no room for the slots.
  cuda_double::settings scarce = devices(2);
  scarce.memory = 8192;
  start(scarce);
  says(message_of_exception([] {
         run(2, {.deadline = 1}, [](auto& on) {
           const orrery::attention<orrery::ring, kernel> attend{on, {.length = 512, .query_heads = 4, .head_dim = 16}};
         });
       }),
       "a plan needs ");
  CHECK(found_by_doubles() == "");
}

TEST_CASE("no device, and NCCL's own refusals") {
  start(devices(0));
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  const std::string none = message_of_exception([&] { static_cast<void>(nccl::join(id, 0, 2, 0.2)); });
  says(none, "orrery: cudaGetDeviceCount in ");
  says(none, "; a CUDA device and a driver as new as the toolkit are needed, or a kernel for the host");

  start(devices(1));
  ncclGetUniqueId(&id);
  nccl_double::fail("ncclCommInitRankConfig", 1, ncclInvalidUsage, "Duplicate GPU detected\n");
  CHECK(message_of_exception([&] { static_cast<void>(nccl::join(id, 0, 2, 0.2)); }) ==
        "orrery: rank 0 of 2: ncclCommInitRankConfig failed: another NCCL error (Duplicate GPU detected)");
  // A rank that joins alone.
  start(devices(1));
  CHECK(message_of_exception([&] { static_cast<void>(nccl::join(id, 0, 2, 0.2)); }) ==
        "orrery: rank 0 of 2: ncclCommInitRankConfig is not done before the deadline: another rank has not come to it");
  CHECK(found_by_doubles() == "");
}

TEST_CASE("invalid arguments, and ranks that do not match") {
  start(devices(2));
  CHECK(message_of_exception([] {
          const nccl::world none{nullptr, nullptr};
        }) == "orrery: nccl::world: the communicator is null; make one by ncclCommInitRank or nccl::join");
  says(message_of_exception([] { run(2, {.deadline = -1}, [](auto&) {}); }),
       "orrery: nccl::options: deadline is -1.000000, expected a positive number of seconds");
  says(message_of_exception([] { run(2, {.watchdog_period = -1}, [](auto&) {}); }),
       "orrery: nccl::options: watchdog_period is -1.000000, expected seconds, or 0 for no watchdog");
  says(message_of_exception([] { run(2, {.watchdog_period = std::nan("")}, [](auto&) {}); }),
       "orrery: nccl::options: watchdog_period is nan, expected seconds, or 0 for no watchdog");
  says(message_of_exception([] { run(2, {.max_ctas = 65}, [](auto&) {}); }),
       "orrery: nccl::options: max_ctas is 65, expected 1 to 64, or 0 for NCCL's choice");
  says(message_of_exception([] { run(2, {.max_ctas = -1}, [](auto&) {}); }), "max_ctas is -1, expected 1 to 64");
  CHECK(found_by_doubles() == "");

  // A stream of one device, and a communicator of another.
  start(devices(2));
  CHECK(message_of_exception([] {
          run(1, {}, [](auto&) {
            ncclUniqueId id;
            ncclGetUniqueId(&id);
            const nccl::communicator comm = nccl::join(id, 0, 1, 20);
            orrery::detail::check_cuda(cudaSetDevice(1), "cudaSetDevice");
            const orrery::detail::cuda_stream stream;
            const nccl::world mixed{comm.get(), stream.get()};
          });
        }) ==
        "orrery: nccl::world: the stream is of device 1, the communicator of device 0; make the stream while the "
        "communicator's device is the current one");
  CHECK(found_by_doubles() == "");

  // Ranks that ask for different operators; the world stays usable.
  start(devices(2));
  run(2, {}, [](auto& on) {
    orrery::attention_shape shape = small;
    shape.length += on.rank();
    says(message_of_exception([&] { const trainer<orrery::ring> local{on, shape}; }), "orrery: ranks disagree about ");
    CHECK(on.usable());
    trainer<orrery::ring> local{on};
    local.step();
  });
  CHECK(found_by_doubles() == "");

  // Both ends of a message must agree about its size; the world stays usable.
  start(devices(2));
  run(2, {}, [](auto& on) {
    orrery::builder schedule{on.rank(), 2};
    schedule.shift(orrery::key(on.rank()), +1);
    schedule.next_step();
    orrery::program p = schedule;
    orrery::schedule::finish(p);
    const orrery::detail::device_memory memory{64};
    const std::int64_t bytes = on.rank() == 0 ? 32 : 16;
    says(message_of_exception([&] {
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

TEST_CASE("ranks in different collective calls") {
  collectives::check_all(3, 2, [](const auto& body) {
    start(devices(3));
    try {
      run(3, {.deadline = 3600}, [&](auto& on) {
        body(on, [](auto& world) { const orrery::attention<orrery::ring, kernel> attend{world, small}; });
      });
    } catch (const orrery::transport_error&) {  // `run` ends by a call of its own, which says so again
    }
    CHECK(found_by_doubles() == "");
  });
}

TEST_CASE("a program that is not proven is refused, and a call that awaits what it has not posted fails") {
  start(devices(2));
  static_cast<void>(message_of_exception([] {
    run(2, {.deadline = 1}, [](auto& on) {
      // Each rank waits for what the other sends afterwards.
      orrery::builder schedule{on.rank(), 2};
      const int peer = 1 - on.rank();
      schedule.begin_exchange(orrery::schedule::no_rank, peer);
      schedule.receive(orrery::key(peer));
      schedule.next_step();
      schedule.begin_exchange(peer, orrery::schedule::no_rank);
      schedule.send(orrery::key(on.rank()));
      schedule.next_step();
      orrery::program p = schedule;
      orrery::schedule::finish(p);
      const orrery::detail::device_memory memory{64};
      const std::vector<orrery::exchange_pieces> pieces{{{}, {{memory.data(), 32}}}, {{{memory.data() + 32, 32}}, {}}};
      says(message_of_exception([&] { const auto channel = on.open(p, pieces); }), "would wait for ever in step 1");
      CHECK(on.usable());

      orrery::builder fine{on.rank(), 2};
      fine.shift(orrery::key(on.rank()), +1);
      fine.next_step();
      p = fine;
      orrery::schedule::finish(p);
      auto channel = on.open(p, {{{{memory.data(), 32}}, {{memory.data() + 32, 32}}}});
      channel.begin();
      says(message_of_exception([&] { channel.await(0); }), ", which it has not posted");
      CHECK_FALSE(on.usable());
      throw std::runtime_error{"this rank ends"};
    });
  }));
  CHECK(found_by_doubles() == "");
}
