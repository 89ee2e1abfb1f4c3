// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The functions of the CUDA runtime.
#include "device/runtime_double.hpp"

#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include "device/runtime_double_graphs.hpp"
#include "device/runtime_double_memory.hpp"
#include "device/runtime_double_streams.hpp"

namespace {

using namespace cuda_double;

cudaError_t keep(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

/// Runs one call of the runtime: `body(runtime, lock)`, unless it is to fail.
template <class Body>
cudaError_t call(const char* function, const Body& body) {
  simulated_runtime& runtime = simulated_runtime::get();
  if (in_host_function) {  // with the lock held
    runtime.fault(std::string{function} + " was called by a function that a stream runs");
    return cudaErrorNotPermitted;
  }
  std::unique_lock lock{runtime.mutex};
  const cudaError_t error = runtime.enter(function);
  return keep(error != cudaSuccess ? error : body(runtime, lock));
}
/// A call that releases something: it does so even when it is to fail.
template <class Body>
cudaError_t release(const char* function, const Body& body) {
  simulated_runtime& runtime = simulated_runtime::get();
  std::unique_lock lock{runtime.mutex};
  const cudaError_t error = runtime.enter(function);
  const cudaError_t released = body(runtime, lock);
  return keep(error != cudaSuccess ? error : released);
}

using lock_type = std::unique_lock<std::mutex>;

}  // namespace

namespace cuda_double {

void reset(const settings& how) {
  simulated_runtime& runtime = simulated_runtime::get();
  const std::lock_guard lock{runtime.mutex};
  runtime.reset(how);
  last_error = cudaSuccess;
  current_device = 0;
}
void fail(const std::string& function, int nth, cudaError_t error, bool sticky) {
  simulated_runtime& runtime = simulated_runtime::get();
  const std::lock_guard lock{runtime.mutex};
  runtime.fail(function, nth, error, sticky);
}
void ignore_wait(int nth) {
  simulated_runtime& runtime = simulated_runtime::get();
  const std::lock_guard lock{runtime.mutex};
  runtime.ignore_wait(nth);
}
int calls(const std::string& function) {
  simulated_runtime& runtime = simulated_runtime::get();
  const std::lock_guard lock{runtime.mutex};
  return runtime.counts[function];
}
std::vector<std::string> faults() {
  simulated_runtime& runtime = simulated_runtime::get();
  const std::lock_guard lock{runtime.mutex};
  return runtime.faults.all;
}
std::string leaks() {
  simulated_runtime& runtime = simulated_runtime::get();
  const std::lock_guard lock{runtime.mutex};
  return runtime.leaks();
}
void wake() {
  simulated_runtime& runtime = simulated_runtime::get();
  const std::lock_guard lock{runtime.mutex};
  runtime.changed();
}
int priority_of(cudaStream_t stream) { return stream->priority; }
bool becomes_idle(int device, const std::function<bool()>& also, double seconds) {
  simulated_runtime& runtime = simulated_runtime::get();
  std::unique_lock lock{runtime.mutex};
  return runtime.becomes_idle(lock, device, also, seconds);
}
void announce(accesses what) { announced = std::move(what); }

cudaError_t enqueue(cudaStream_t stream, accesses what, std::function<bool()> step) {
  simulated_runtime& runtime = simulated_runtime::get();
  const std::lock_guard lock{runtime.mutex};
  return runtime.enqueue(stream, std::move(what), std::move(step));
}

}  // namespace cuda_double

extern "C" {

const char* CUDARTAPI cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case cudaErrorNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
    default:
      return "another CUDA error";
  }
}
const char* CUDARTAPI cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "the runtime double was told to fail, or found a mistake";
}
cudaError_t CUDARTAPI cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t CUDARTAPI cudaPeekAtLastError() { return last_error; }

cudaError_t CUDARTAPI cudaGetDeviceCount(int* count) {
  return call("cudaGetDeviceCount", [&](simulated_runtime& runtime, lock_type&) {
    *count = static_cast<int>(runtime.how.compute_capabilities.size());
    return *count == 0 ? cudaErrorNoDevice : cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaGetDevice(int* device) {
  return call("cudaGetDevice", [&](simulated_runtime&, lock_type&) {
    *device = current_device;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaSetDevice(int device) {
  return call("cudaSetDevice", [&](simulated_runtime& runtime, lock_type&) {
    if (device < 0 || static_cast<std::size_t>(device) >= runtime.how.compute_capabilities.size()) {
      return cudaErrorInvalidDevice;
    }
    current_device = device;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return call("cudaDeviceGetAttribute", [&](simulated_runtime& runtime, lock_type&) {
    const auto& [major, minor] = runtime.how.compute_capabilities[static_cast<std::size_t>(device)];
    if (attribute == cudaDevAttrComputeCapabilityMajor) {
      *value = major;
    } else if (attribute == cudaDevAttrComputeCapabilityMinor) {
      *value = minor;
    } else if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin) {
      *value = runtime.how.shared_bytes;
    } else {
      return cudaErrorInvalidValue;
    }
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  return call("cudaFuncGetAttributes", [&](simulated_runtime&, lock_type&) {
    *attributes = {};
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaDeviceCanAccessPeer(int* can, int, int) {
  return call("cudaDeviceCanAccessPeer", [&](simulated_runtime& runtime, lock_type&) {
    *can = runtime.how.peer_access ? 1 : 0;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaDeviceEnablePeerAccess(int peer, unsigned) {
  return call("cudaDeviceEnablePeerAccess", [&](simulated_runtime& runtime, lock_type&) {
    if (!runtime.how.peer_access || peer == current_device) return cudaErrorPeerAccessUnsupported;
    return runtime.counts["cudaDeviceEnablePeerAccess"] > 1 ? cudaErrorPeerAccessAlreadyEnabled : cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaMalloc(void** memory, std::size_t size) {
  return call("cudaMalloc", [&](simulated_runtime& runtime, lock_type&) { return runtime.allocate(memory, size); });
}
cudaError_t CUDARTAPI cudaFree(void* memory) {
  return release("cudaFree", [&](simulated_runtime& runtime, lock_type&) { return runtime.free(memory); });
}
cudaError_t CUDARTAPI cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return call("cudaMemGetInfo", [&](simulated_runtime& runtime, lock_type&) {
    *total = runtime.how.memory;
    *free = runtime.how.memory - runtime.arena.used(current_device);
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return call("cudaStreamCreateWithFlags", [&](simulated_runtime& runtime, lock_type&) {
    *stream = new CUstream_st;
    (*stream)->device = current_device;
    runtime.add_stream(*stream);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return call("cudaDeviceGetStreamPriorityRange", [&](simulated_runtime&, lock_type&) {
    *least = 0;
    *greatest = greatest_priority;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
  return call("cudaStreamCreateWithPriority", [&](simulated_runtime& runtime, lock_type&) {
    *stream = new CUstream_st;
    (*stream)->device = current_device;
    (*stream)->priority = priority;
    runtime.add_stream(*stream);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t stream) {
  return release("cudaStreamDestroy", [&](simulated_runtime& runtime, lock_type& lock) {
    // What it was given still runs; nothing can be ordered after it any more.
    if (!runtime.broken && stream->capture == nullptr) static_cast<void>(runtime.synchronize(lock, stream));
    runtime.streams.erase(stream);
    delete stream;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t stream) {
  return call("cudaStreamSynchronize",
              [&](simulated_runtime& runtime, lock_type& lock) { return runtime.synchronize(lock, stream); });
}
cudaError_t CUDARTAPI cudaStreamQuery(cudaStream_t stream) {
  return call("cudaStreamQuery", [&](simulated_runtime& runtime, lock_type&) { return runtime.query(stream); });
}
cudaError_t CUDARTAPI cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return call("cudaStreamWaitEvent", [&](simulated_runtime& runtime, lock_type&) {
    return runtime.ignored() ? cudaSuccess : runtime.wait_event(stream, event);
  });
}
cudaError_t CUDARTAPI cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return call("cudaStreamIsCapturing", [&](simulated_runtime&, lock_type&) {
    *status = stream->capture == nullptr ? cudaStreamCaptureStatusNone
              : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaStreamGetDevice(cudaStream_t stream, int* device) {
  return call("cudaStreamGetDevice", [&](simulated_runtime&, lock_type&) {
    *device = stream->device;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return call("cudaEventCreateWithFlags", [&](simulated_runtime& runtime, lock_type&) {
    *event = new CUevent_st;
    (*event)->device = current_device;
    runtime.events.insert(*event);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t CUDARTAPI cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  return call("cudaEventElapsedTime", [&](simulated_runtime&, lock_type&) {
    *milliseconds = 1;  // whatever lies between: there is no time here
    for (const cudaEvent_t one : {begin, end}) {
      if (one->last == nullptr) return cudaErrorInvalidResourceHandle;
      if (!one->last->done) return cudaErrorNotReady;
    }
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaEventDestroy(cudaEvent_t event) {
  return release("cudaEventDestroy", [&](simulated_runtime& runtime, lock_type&) {
    runtime.events.erase(event);
    delete event;
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call("cudaEventRecord",
              [&](simulated_runtime& runtime, lock_type&) { return runtime.record_event(event, stream); });
}
cudaError_t CUDARTAPI cudaEventSynchronize(cudaEvent_t event) {
  return call("cudaEventSynchronize",
              [&](simulated_runtime& runtime, lock_type& lock) { return runtime.synchronize(lock, event); });
}
cudaError_t CUDARTAPI cudaEventQuery(cudaEvent_t event) {
  return call("cudaEventQuery", [&](simulated_runtime& runtime, lock_type&) { return runtime.query(event); });
}

cudaError_t CUDARTAPI cudaMemcpy(void* to, const void* from, std::size_t size, cudaMemcpyKind) {
  return call("cudaMemcpy", [&](simulated_runtime& runtime, lock_type&) { return runtime.copy_now(to, from, size); });
}
cudaError_t CUDARTAPI cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind,
                                      cudaStream_t stream) {
  return call("cudaMemcpyAsync", [&](simulated_runtime& runtime, lock_type&) {
    return runtime.enqueue(stream, {"a copy", {{from, address(from) + size}}, {{to, address(to) + size}}}, [=] {
      std::memcpy(to, from, size);
      return true;
    });
  });
}
cudaError_t CUDARTAPI cudaMemcpyPeerAsync(void* to, int, const void* from, int, std::size_t size, cudaStream_t stream) {
  return call("cudaMemcpyPeerAsync", [&](simulated_runtime& runtime, lock_type&) {
    return runtime.enqueue(stream,
                           {"a copy between devices", {{from, address(from) + size}}, {{to, address(to) + size}}}, [=] {
                             std::memcpy(to, from, size);
                             return true;
                           });
  });
}
cudaError_t CUDARTAPI cudaMemsetAsync(void* memory, int value, std::size_t size, cudaStream_t stream) {
  return call("cudaMemsetAsync", [&](simulated_runtime& runtime, lock_type&) {
    return runtime.enqueue(stream, {"a memset", {}, {{memory, address(memory) + size}}}, [=] {
      std::memset(memory, value, size);
      return true;
    });
  });
}
cudaError_t CUDARTAPI cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* argument) {
  return call("cudaLaunchHostFunc", [&](simulated_runtime& runtime, lock_type&) {
    accesses what = announced.value_or(accesses{"a function", {}, {}});
    announced.reset();
    if (runtime.streams.count(stream) > 0 && stream->device != current_device) {
      runtime.fault(what.name + " is enqueued on a stream of another device than the current one");
    }
    return runtime.enqueue(stream, std::move(what), [=] {
      function(argument);
      return true;
    });
  });
}

cudaError_t CUDARTAPI cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return call("cudaStreamBeginCapture",
              [&](simulated_runtime& runtime, lock_type&) { return runtime.begin_capture(stream, mode); });
}
cudaError_t CUDARTAPI cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return release("cudaStreamEndCapture", [&](simulated_runtime& runtime, lock_type&) {
    *graph = nullptr;
    std::shared_ptr<captured_graph> made;
    const cudaError_t error = runtime.end_capture(stream, made);
    if (error != cudaSuccess) return error;
    *graph = new CUgraph_st{made};
    runtime.graphs.insert(*graph);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return call("cudaGraphInstantiate", [&](simulated_runtime& runtime, lock_type&) {
    *executable = new CUgraphExec_st{graph->made};
    runtime.executables.insert(*executable);
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return call("cudaGraphLaunch",
              [&](simulated_runtime& runtime, lock_type&) { return runtime.launch(stream, executable->made); });
}
cudaError_t CUDARTAPI cudaGraphDestroy(cudaGraph_t graph) {
  return release("cudaGraphDestroy", [&](simulated_runtime& runtime, lock_type&) {
    runtime.graphs.erase(graph);
    delete graph;
    runtime.changed();
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return release("cudaGraphExecDestroy", [&](simulated_runtime& runtime, lock_type&) {
    runtime.executables.erase(executable);
    delete executable;
    runtime.changed();
    return cudaSuccess;
  });
}

}  // extern "C"
