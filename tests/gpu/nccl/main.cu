// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The transport `nccl` on GPUs, with NCCL itself. Without a GPU it says so, and ends with the code by which ctest calls
// it skipped.
//
//     test_gpu_nccl                    ranks are threads: one, and as many as there are GPUs
//     test_gpu_nccl --processes N      N ranks, each a process, all on GPU 0, which NCCL takes for GPUs of several
//                                      hosts, connected by sockets; skipped if it does not
#define DOCTEST_CONFIG_IMPLEMENT
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "orrery/transport/detail/deadline.hpp"

#include "device/messages.hpp"
#include "gpu/nccl/cases.cuh"
#include "nccl/share_by_file.hpp"
#include "transport/nccl/threads.hpp"

namespace {

using namespace nccl_gpu;
using cuda_test::message_of_exception;

constexpr int skipped = 77;

int gpus() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess ? devices : 0;
}

/// One rank of several, in this process.
int run_rank(int rank, int ranks, const std::string& folder) {
  if (gpus() == 0) return skipped;
  try {
    orrery::detail::check_cuda(cudaSetDevice(0), "cudaSetDevice");
    const orrery::detail::cuda_stream stream;
    const ncclUniqueId id = share_by_file(folder + "/id", rank, 60);
    nccl::communicator comm;
    try {
      comm = nccl::join(id, rank, ranks, 60);
    } catch (const orrery::transport_error& e) {
      std::printf("%s\n", e.what());
      const bool refuses =
          std::strstr(e.what(), "Duplicate GPU") != nullptr || std::strstr(e.what(), "using the same GPU") != nullptr;
      return refuses ? skipped : 1;
    }
    for (const bool native : {true, false}) {
      nccl::world world{
          comm.get(), stream.get(), {.deadline = 60, .native_all_gather = native, .native_all_to_all = native}};
      const auto here = [&](int, const auto& body) {
        body(world);
        world.synchronize();
      };
      if (const std::string found = failures(here, ranks); !found.empty()) throw std::runtime_error{found};
      check_graph(world);
    }
    nccl::world world{comm.get(), stream.get(), {.deadline = 5, .watchdog_period = 0.1}};
    check_release(world, [] {
      std::fflush(stdout);
      std::_Exit(0);
    });
    std::printf("rank %d of %d passed\n", rank, ranks);
    std::fflush(stdout);
    std::_Exit(0);  // the communicator's other rank is gone
  } catch (const std::exception& e) {
    std::printf("rank %d: %s\n", rank, e.what());
    return 1;
  }
}

/// Starts the ranks before this process has called CUDA, waits for them, and stops those that do not end.
int run_processes(int ranks) {
  char folder[] = "/tmp/orrery_nccl_XXXXXX";
  if (mkdtemp(folder) == nullptr) return 1;
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    const pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) {
      const std::string number = std::to_string(rank);
      setenv("NCCL_HOSTID", ("orrery-" + number).c_str(), 1);
      setenv("NCCL_SOCKET_IFNAME", "lo", 1);
      for (const char* off : {"NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE"}) setenv(off, "1", 1);
      setenv("NCCL_NVLS_ENABLE", "0", 1);
      setenv("NCCL_DEBUG", "WARN", 0);
      execl("/proc/self/exe", "test_gpu_nccl", "--rank", number.c_str(), std::to_string(ranks).c_str(), folder,
            static_cast<char*>(nullptr));
      std::_Exit(1);
    }
    children.push_back(child);
  }
  const auto deadline = orrery::detail::deadline_in(240);
  int result = 0;
  bool left_out = false;
  for (const pid_t child : children) {
    int status = 0;
    while (waitpid(child, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > deadline) {
        std::printf("A rank does not end, and is stopped.\n");
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds{20});
    }
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    if (code == skipped) left_out = true;
    if (code != 0 && code != skipped) result = 1;
  }
  std::filesystem::remove_all(folder);
  if (result == 0 && left_out) {
    std::printf("Skipped: there is no GPU here, or NCCL does not take one GPU for those of several hosts.\n");
    return skipped;
  }
  return result;
}

}  // namespace

TEST_CASE("one rank") {
  const auto on_gpu = [](int ranks, const auto& body) { nccl_test::run(ranks, {}, body); };
  CHECK(failures(on_gpu, 1) == "");
  CHECK(message_of_exception([&] { on_gpu(1, [](nccl::world& on) { check_graph(on); }); }) == "");
}

TEST_CASE("a rank that joins alone ends at the deadline") {
  orrery::detail::check_cuda(cudaSetDevice(0), "cudaSetDevice");
  ncclUniqueId id;
  REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
  CHECK(message_of_exception([&] {
          static_cast<void>(nccl::join(id, 0, 2, 2));
        }).find("another rank has not come to it") != std::string::npos);
}

TEST_CASE("as many ranks as there are GPUs") {
  for (const bool native : {true, false}) {
    const auto on_gpus = [&](int ranks, const auto& body) {
      nccl_test::run(ranks, {.native_all_gather = native, .native_all_to_all = native}, body);
    };
    for (const int world : {2, 3, 4, 7, 8}) {
      if (world > gpus()) continue;
      CHECK(failures(on_gpus, world) == "");
      CHECK(message_of_exception([&] { on_gpus(world, [](nccl::world& on) { check_graph(on); }); }) == "");
    }
  }
}

TEST_CASE("two ranks, of which one stands still: the other's stream is released") {
  if (gpus() < 2) return;
  std::atomic<bool> over{false};
  const nccl::options how{.deadline = 5, .watchdog_period = 0.1};
  CHECK(message_of_exception([&] {
          nccl_test::run(2, how, [&](nccl::world& on) {
            check_release(on, [&] {
              while (!over.load()) std::this_thread::yield();
            });
            over.store(true);
            throw std::runtime_error{"this rank ends"};
          });
        }) == "this rank ends");
}

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--processes") == 0) return run_processes(std::atoi(argv[2]));
  if (argc == 5 && std::strcmp(argv[1], "--rank") == 0) {
    return run_rank(std::atoi(argv[2]), std::atoi(argv[3]), argv[4]);
  }
  if (gpus() == 0) {
    std::printf("Skipped: there is no GPU here.\n");
    return skipped;
  }
  return doctest::Context{argc, argv}.run();
}
