// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What a trainer on devices is told when something is wrong with them: a message with a way out, on all ranks, soon,
// and nothing stays behind. (More of it is in device.cpp, beside the transport's own tests.)
#include <cstdint>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention.hpp"
#include "orrery/device/limits.hpp"
#include "orrery/device/query.hpp"
#include "orrery/kernel/device_cudnn.cuh"
#include "orrery/kernel/device_flash.cuh"
#include "orrery/kernel/device_reference.cuh"
#include "orrery/kernel/reference.hpp"
#include "orrery/layout/layout.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/device.hpp"
#include "orrery/transport/device_graph.hpp"

#include "device/enqueued.hpp"
#include "device/messages.hpp"
#include "device/runtime_double.hpp"
#include "device/streamed_device.hpp"
#include "kernel/cudnn/double.hpp"
#include "transport/device/conformance.hpp"

namespace {

namespace device = orrery::device;
using cuda_test::message_of_exception;

/// One rank's operator, tensors and calls.
template <class Kernel>
struct trainer : cuda_test::trainer<orrery::ring, Kernel, device::world> {
  explicit trainer(device::world& on)
      : cuda_test::trainer<orrery::ring, Kernel, device::world>{on, {.length = 8, .query_heads = 2, .head_dim = 8}} {}
};

using plain = cuda_test::enqueued<orrery::reference<double>>;

/// An emulated device that has what the runtime double says of the current one, and asks that for code as `gpu` does.
struct queried_device : cuda_test::streamed_device {
  static void require(const std::string& kernel, const orrery::detail::device_needs& needs) {
    const orrery::detail::device_limits has = orrery::detail::limits_of_current_device();
    has.require(kernel, needs);
    static_cast<void>(orrery::detail::require_code(kernel, has, nullptr));
  }
};
using flash = orrery::device_flash<orrery::bfloat16, 64, queried_device>;
using reference = orrery::device_reference<orrery::bfloat16, queried_device>;
using cudnn = orrery::device_cudnn<orrery::bfloat16, cudnn_double::engine, queried_device>;

/// What three ranks' training says when it fails; empty if it does not. Nothing may stay behind.
template <class Kernel>
std::string message(device::options options = {}) {
  options.deadline = 20;
  const std::string before = cuda_double::leaks();
  std::string said;
  try {
    device::run(3, options, [](auto& on) {
      trainer<Kernel> local{on};
      local.step();
      on.synchronize();
    });
  } catch (const std::exception& e) {
    said = e.what();
  }
  cuda_test::enqueued_work::forget();
  CHECK(cuda_double::leaks() == before);
  CHECK(cudaGetLastError() == cudaSuccess);  // said is said
  return said;
}

void says(const std::string& message, const std::vector<std::string>& parts) {
  INFO(message);
  for (const std::string& part : parts) {
    const bool found = message.find(part) != std::string::npos;
    CHECK_MESSAGE(found, "without: ", part);
  }
}

}  // namespace

TEST_CASE("no device, or no driver that is new enough") {
  const std::string way_out =
      "a CUDA device and a driver as new as the toolkit are needed, or a kernel for the host, as orrery::flash, over "
      "the "
      "transport threads or mpi";
  cuda_double::reset({.compute_capabilities = {}});
  says(message<plain>(), {"orrery: cudaGetDeviceCount in ", "cudaErrorNoDevice", way_out});
  cuda_double::reset();
  cuda_double::fail("cudaGetDeviceCount", 1, cudaErrorInsufficientDriver);
  says(message<plain>(), {"orrery: cudaGetDeviceCount in ", "cudaErrorInsufficientDriver", way_out});
}

TEST_CASE("a device that is too old for the kernel, or too small, or that the program has no code for") {
  // Told when the operator is made, on all ranks, before anything is enqueued.
  const auto refusal = [](auto kernel, const cuda_double::settings& options) {
    cuda_double::reset(options);
    std::mutex mutex;
    std::set<std::string> said;
    device::run(3, {.deadline = 20}, [&](auto& on) {
      const std::string message = message_of_exception([&] {
        orrery::attention<orrery::ring, decltype(kernel)>{on, {.length = 8, .query_heads = 2, .head_dim = 8}};
      });
      const std::lock_guard lock{mutex};
      said.insert(message);
    });
    CHECK(cuda_double::calls("cudaLaunchHostFunc") == 0);
    CHECK(cudnn_double::all.faults == "");
    REQUIRE(said.size() == 1);
    return *said.begin();
  };
  const std::string too_old = "orrery: rank 0: device 0 has compute capability 7.5, but kernel ";
  cudnn_double::reset();
  CHECK(refusal(flash{}, {.compute_capabilities = {{7, 5}}}) ==
        too_old + "device_flash<bfloat16> needs 8.0 or newer; orrery::device_reference runs on every device");
  CHECK(refusal(cudnn{}, {.compute_capabilities = {{7, 5}}}) ==
        too_old + "device_cudnn<bfloat16> needs 8.0 or newer; orrery::device_reference runs on every device");
  CHECK(refusal(reference{}, {.compute_capabilities = {{7, 5}}}) == "");
  CHECK(refusal(flash{}, {.compute_capabilities = {{8, 0}}}) == "");
  CHECK(refusal(cudnn{}, {.compute_capabilities = {{8, 0}}}) == "");
  says(refusal(flash{}, {.shared_bytes = 30000}), {"orrery: rank 0: device 0 has 30000 bytes of shared memory for a "
                                                   "block, but kernel device_flash<bfloat16> needs ",
                                                   " for these head dimensions; orrery::device_reference needs none"});

  // Devices of a kind that the program is not compiled for.
  const auto without_code = [&](auto kernel, cudaError_t code) {
    cuda_double::reset({.compute_capabilities = {{9, 0}}});
    cuda_double::fail("cudaFuncGetAttributes", 1, code);
    std::string message;
    device::run(1, {.deadline = 20}, [&](auto& on) {
      message = message_of_exception([&] {
        orrery::attention<orrery::ring, decltype(kernel)>{on, {.length = 8, .query_heads = 2, .head_dim = 8}};
      });
    });
    CHECK(cudaGetLastError() == cudaSuccess);
    return message;
  };
  const std::string no_code =
      "orrery: rank 0: device 0 has compute capability 9.0, for which the program holds no code of kernel ";
  CHECK(without_code(flash{}, cudaErrorNoKernelImageForDevice) ==
        no_code +
            "device_flash<bfloat16> (cudaFuncGetAttributes: cudaErrorNoKernelImageForDevice); add 90 to "
            "CMAKE_CUDA_ARCHITECTURES");
  CHECK(without_code(cudnn{}, cudaErrorInvalidDeviceFunction) ==
        no_code +
            "device_cudnn<bfloat16> (cudaFuncGetAttributes: cudaErrorInvalidDeviceFunction); add 90 to "
            "CMAKE_CUDA_ARCHITECTURES");
  CHECK(without_code(reference{}, cudaErrorNoKernelImageForDevice) ==
        no_code +
            "device_reference<bfloat16> (cudaFuncGetAttributes: cudaErrorNoKernelImageForDevice); add 90 to "
            "CMAKE_CUDA_ARCHITECTURES");
  says(without_code(flash{}, cudaErrorIllegalAddress),
       {"orrery: rank 0: cudaFuncGetAttributes in ", "cudaErrorIllegalAddress"});

  // And by calls of those that no operator has asked for.
  cuda_double::reset();
  cuda_double::fail("cudaLaunchHostFunc", 2, cudaErrorNoKernelImageForDevice);
  says(message<flash>(), {"orrery: cudaLaunchHostFunc in ",
                          "the program is compiled for other devices: add this one's to CMAKE_CUDA_ARCHITECTURES"});
  cuda_double::reset();
  CHECK(message<flash>() == "");
}

TEST_CASE("devices of several kinds, unless those of one are named") {
  cuda_double::reset({.compute_capabilities = {{8, 0}, {9, 0}, {9, 0}}});
  CHECK(message<plain>() ==
        "orrery: device::options: device 0 has compute capability 8.0 and device 1 has 9.0; kernels differ between the "
        "two, so name devices of one kind");
  CHECK(message<plain>({.devices = {1, 2}}) == "");
}

TEST_CASE("devices with too many peers: copies to the rest go through the host") {
  cuda_double::reset({.compute_capabilities = {{9, 0}, {9, 0}}});
  cuda_double::fail("cudaDeviceEnablePeerAccess", 1, cudaErrorTooManyPeers);
  CHECK(message<plain>() == "");
  cuda_double::reset({.compute_capabilities = {{9, 0}, {9, 0}}});
  cuda_double::fail("cudaDeviceEnablePeerAccess", 1, cudaErrorNotSupported);
  says(message<plain>(), {"orrery: cudaDeviceEnablePeerAccess in "});
}

TEST_CASE("memory that is too small for a plan, and then sufficient") {
  cuda_double::reset({.memory = 6000});
  says(message<plain>(),
       {"orrery: a plan needs ", " bytes more on device 0, where ", " of 6000 are free; free some, "});
  // The device is not broken: a trainer that needs less goes on in the same process.
  cuda_double::reset({.memory = 60000});
  CHECK(message<plain>() == "");
}

TEST_CASE("a sticky error: reported on all ranks, and by every later call") {
  cuda_double::reset();
  cuda_double::fail("cudaStreamSynchronize", 4, cudaErrorIllegalAddress,
                    true);  // after calls were enqueued, as a kernel's
  const std::vector<std::string> parts{
      "failed: ", "cudaErrorIllegalAddress",
      "the fault is this call's or that of work enqueued before it, and the device cannot be used in this process any "
      "more: run with CUDA_LAUNCH_BLOCKING=1, or under compute-sanitizer, to see where it happened"};
  says(message<plain>(), parts);
  says(message<plain>(), parts);
}

TEST_CASE("a stream of another device than the rank's") {
  cuda_double::reset({.compute_capabilities = {{9, 0}, {9, 0}}});
  {
    const orrery::detail::cuda_stream of_first;
    const std::vector<cudaStream_t> streams(3, of_first.get());
    CHECK(
        message<plain>({.devices = {1}, .streams = streams}) ==
        "orrery: device::options: a stream is given to a rank on device 1, but CUDA does not take it there; give each "
        "rank a stream of its own device, or none");
    CHECK(message<plain>({.devices = {0}, .streams = streams}) == "");
  }
}

TEST_CASE("a graph that cannot be launched stops all ranks") {
  cuda_double::reset();
  cuda_double::fail("cudaGraphLaunch", 2, cudaErrorLaunchOutOfResources);
  std::string said;
  try {
    device::run(3, {.deadline = 20}, [](auto& on) {
      trainer<plain> local{on};
      auto graph = device::capture(on, [&] { local.step(); });
      for (int i = 0; i < 3; ++i) graph.launch();
      on.synchronize();
    });
  } catch (const std::exception& e) {
    said = e.what();
  }
  says(said, {"orrery: cudaGraphLaunch in "});
  cuda_test::enqueued_work::forget();
  CHECK(cuda_double::leaks() == "");
}
