// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include "device/runtime_double.hpp"
#include "device/runtime_double_graphs.hpp"
#include "device/runtime_double_memory.hpp"

/// The runtime double's streams and events: what they hold, and when it runs.
namespace cuda_double {

/// One cudaEventRecord.
struct record {
  bool done = false;
  vector_clock before;
};

struct operation {
  std::function<bool()> step;           // null: nothing to do
  std::shared_ptr<const record> waits;  // for, before it runs
  std::shared_ptr<record> records;      // when it has run
};

}  // namespace cuda_double

struct CUstream_st {
  int number = 0;
  int device = 0;
  int priority = 0;
  std::deque<cuda_double::operation> queue;
  cuda_double::vector_clock clock;
  std::shared_ptr<cuda_double::captured_graph> capture;  // null: none is under way
  std::vector<std::size_t> frontier;                     // nodes of it that the next one comes after
  bool origin = false;
};
struct CUevent_st {
  int device = 0;
  std::shared_ptr<cuda_double::record> last;
  std::shared_ptr<cuda_double::captured_graph> capture;  // if it was recorded in one
  std::vector<std::size_t> frontier;
};
struct CUgraph_st {
  std::shared_ptr<cuda_double::captured_graph> made;
};
struct CUgraphExec_st {
  std::shared_ptr<cuda_double::captured_graph> made;
};

namespace cuda_double {

inline thread_local int current_device = 0;
inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local std::optional<accesses> announced;
inline thread_local bool in_host_function = false;
inline thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

class simulated_runtime {
 public:
  static simulated_runtime& get() {
    static simulated_runtime one;
    return one;
  }

  std::mutex mutex;
  std::condition_variable enqueued;
  settings how;
  std::map<std::string, int> counts;
  fault_list faults;
  device_arena arena{faults};
  std::set<CUstream_st*> streams;
  std::set<CUevent_st*> events;
  std::set<CUgraph_st*> graphs;
  std::set<CUgraphExec_st*> executables;
  std::optional<cudaError_t> broken;  // a sticky error
  std::minstd_rand random;

  /// Counts the call. An error that it must return, or success.
  cudaError_t enter(const char* function) {
    const int nth = ++counts[function];
    if (in_host_function) {
      fault(std::string{function} + " was called by a function that a stream runs");
      return cudaErrorNotPermitted;
    }
    if (broken) return *broken;
    for (auto one = to_fail_.begin(); one != to_fail_.end(); ++one) {
      if (one->function != function || one->nth != nth) continue;
      const cudaError_t error = one->error;
      if (one->sticky) {
        broken = error;
        changed();
      }
      to_fail_.erase(one);
      return error;
    }
    return cudaSuccess;
  }

  void fail(const std::string& function, int nth, cudaError_t error, bool sticky) {
    to_fail_.push_back({function, counts[function] + nth, error, sticky});
  }
  void ignore_wait(int nth) { ignored_ = counts["cudaStreamWaitEvent"] + nth; }
  [[nodiscard]] bool ignored() const { return ignored_ == counts.at("cudaStreamWaitEvent"); }

  /// What could not run may be able to.
  void changed() {
    ++changes_;
    enqueued.notify_all();
  }

  void fault(const std::string& message) { faults.add(message); }

  void reset(const settings& now) {
    if (const std::string left = leaks(); !left.empty()) {
      std::fprintf(stderr, "runtime double: reset while there are %s\n", left.c_str());
      std::abort();
    }
    how = now;
    counts.clear();
    faults.all.clear();
    to_fail_.clear();
    ignored_ = -1;
    broken.reset();
    known_.clear();
    next_number_ = 0;
    random.seed(static_cast<unsigned>(now.seed));
  }
  [[nodiscard]] std::string leaks() const {
    std::string text;
    const auto add = [&](std::size_t count, const char* what) {
      if (count > 0) text += (text.empty() ? "" : ", ") + std::to_string(count) + " " + what;
    };
    add(arena.allocations(), "allocations");
    add(streams.size(), "streams");
    add(events.size(), "events");
    add(graphs.size(), "graphs");
    add(executables.size(), "executable graphs");
    return text;
  }

  cudaError_t allocate(void** to, std::size_t size) { return arena.allocate(to, size, current_device, how.memory); }
  cudaError_t free(void* memory) { return arena.free(memory, broken ? nullptr : &known_); }

  void add_stream(CUstream_st* stream) {
    stream->number = next_number_++;
    streams.insert(stream);
  }

  /// To the stream's end, or to the graph that it is captured into.
  cudaError_t enqueue(CUstream_st* stream, accesses what, std::function<bool()> step) {
    if (streams.count(stream) == 0) return misuse("the default stream, or one that is gone, is used");
    if (stream->capture != nullptr) {
      stream->frontier = stream->capture->add(std::move(what), std::move(step), stream->frontier);
      return cudaSuccess;
    }
    tick(*stream);
    arena.touch(what, stream->number, stream->clock);
    push(*stream, {std::move(step), nullptr, nullptr});
    return cudaSuccess;
  }

  cudaError_t record_event(CUevent_st* event, CUstream_st* stream) {
    if (streams.count(stream) == 0) return misuse("an event is recorded on the default stream, or one that is gone");
    if (event->device != stream->device) return cudaErrorInvalidResourceHandle;
    event->capture = stream->capture;
    if (stream->capture != nullptr) {
      event->frontier = stream->frontier;
      return cudaSuccess;
    }
    tick(*stream);
    event->last = std::make_shared<record>();
    event->last->before = stream->clock;
    push(*stream, {nullptr, nullptr, event->last});
    return cudaSuccess;
  }

  cudaError_t wait_event(CUstream_st* stream, CUevent_st* event) {
    if (streams.count(stream) == 0) return misuse("the default stream, or one that is gone, waits");
    if (event->capture != nullptr) {
      if (stream->capture == nullptr) {
        if (!under_way(*event->capture)) return cudaErrorCapturedEvent;
        stream->capture = event->capture;
        stream->frontier = event->frontier;
        return cudaSuccess;
      }
      if (stream->capture != event->capture) return invalidate(*stream, cudaErrorStreamCaptureMerge);
      for (const std::size_t node : event->frontier) {
        if (std::find(stream->frontier.begin(), stream->frontier.end(), node) == stream->frontier.end()) {
          stream->frontier.push_back(node);
        }
      }
      return cudaSuccess;
    }
    if (event->last == nullptr) {
      fault("a stream waits for an event that was never recorded");
      return cudaSuccess;
    }
    if (stream->capture != nullptr) return invalidate(*stream, cudaErrorStreamCaptureIsolation);
    join(stream->clock, event->last->before);
    push(*stream, {nullptr, event->last, nullptr});
    return cudaSuccess;
  }

  cudaError_t begin_capture(CUstream_st* stream, cudaStreamCaptureMode mode) {
    if (streams.count(stream) == 0) return cudaErrorStreamCaptureUnsupported;
    if (stream->capture != nullptr) return cudaErrorIllegalState;
    stream->capture = std::make_shared<captured_graph>();
    stream->capture->mode = mode;
    stream->frontier.clear();
    stream->origin = true;
    return cudaSuccess;
  }
  cudaError_t end_capture(CUstream_st* stream, std::shared_ptr<captured_graph>& made) {
    if (streams.count(stream) == 0 || stream->capture == nullptr) return cudaErrorIllegalState;
    if (!stream->origin) return cudaErrorStreamCaptureUnmatched;
    const std::vector<std::size_t> last = stream->frontier;
    made = stream->capture;
    stream->origin = false;
    for (CUstream_st* one : streams) {
      if (one->capture != made) continue;
      one->capture = nullptr;
      one->frontier.clear();
    }
    return made->finish(last, faults);
  }
  cudaError_t launch(CUstream_st* stream, const std::shared_ptr<captured_graph>& graph) {
    auto done = std::make_shared<std::vector<bool>>(graph->nodes.size(), false);
    return enqueue(stream, graph->touches(),
                   [this, graph, done] { return graph->advance(*done, random, [this] { ++changes_; }); });
  }

  /// Everything that the stream has been given runs. Other streams run as they must, and as chance has it.
  cudaError_t synchronize(std::unique_lock<std::mutex>& lock, CUstream_st* stream) {
    if (streams.count(stream) == 0) return misuse("the default stream, or one that is gone, is synchronised");
    if (stream->capture != nullptr) return invalidate(*stream, cudaErrorStreamCaptureUnsupported);
    run_until(lock, [&] { return stream->queue.empty(); });
    join(known_, stream->clock);
    return broken.value_or(cudaSuccess);
  }
  cudaError_t synchronize(std::unique_lock<std::mutex>& lock, CUevent_st* event) {
    if (event->capture != nullptr) return cudaErrorCapturedEvent;
    if (event->last == nullptr) return cudaSuccess;
    const std::shared_ptr<record> until = event->last;
    run_until(lock, [&] { return until->done; });
    join(known_, until->before);
    return broken.value_or(cudaSuccess);
  }
  bool becomes_idle(std::unique_lock<std::mutex>& lock, int device, const std::function<bool()>& also, double seconds) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>{seconds};
    const auto idle = [&] {
      return broken || (also() && std::all_of(streams.begin(), streams.end(), [&](const CUstream_st* one) {
                          return one->device != device || one->queue.empty();
                        }));
    };
    while (!idle()) {
      if (run_some(1)) continue;
      if (enqueued.wait_until(lock, deadline) == std::cv_status::timeout) return idle();
    }
    return true;
  }
  /// A thread that has not chosen the relaxed mode ends the captures that are under way in the global one.
  cudaError_t disturb() {
    if (capture_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    cudaError_t error = cudaSuccess;
    for (CUstream_st* one : streams) {
      if (one->capture == nullptr || one->capture->mode != cudaStreamCaptureModeGlobal) continue;
      error = invalidate(*one, cudaErrorStreamCaptureUnsupported);
    }
    return error;
  }
  cudaError_t query(CUstream_st* stream) {
    if (streams.count(stream) == 0) return misuse("the default stream, or one that is gone, is queried");
    if (stream->capture != nullptr) return invalidate(*stream, cudaErrorStreamCaptureUnsupported);
    if (const cudaError_t error = disturb(); error != cudaSuccess) return error;
    run_some(64);
    if (broken) return *broken;
    if (!stream->queue.empty()) return cudaErrorNotReady;
    join(known_, stream->clock);
    return cudaSuccess;
  }
  cudaError_t query(CUevent_st* event) {
    if (event->capture != nullptr) return cudaErrorCapturedEvent;
    if (const cudaError_t error = disturb(); error != cudaSuccess) return error;
    run_some(64);
    if (broken) return *broken;
    if (event->last == nullptr) return cudaSuccess;
    if (!event->last->done) return cudaErrorNotReady;
    join(known_, event->last->before);
    return cudaSuccess;
  }

  /// A copy by the host itself.
  cudaError_t copy_now(void* to, const void* from, std::size_t size) {
    arena.touch({"cudaMemcpy", {{from, address(from) + size}}, {{to, address(to) + size}}}, -1, known_);
    const device_arena::unprotected writable{arena};
    std::memcpy(to, from, size);
    return cudaSuccess;
  }

  cudaError_t misuse(const std::string& message) {
    fault(message);
    return cudaErrorInvalidResourceHandle;
  }

 private:
  struct failure {
    std::string function;
    int nth;
    cudaError_t error;
    bool sticky;
  };
  simulated_runtime() = default;

  [[nodiscard]] bool under_way(const captured_graph& graph) const {
    return std::any_of(streams.begin(), streams.end(),
                       [&](const CUstream_st* one) { return one->origin && one->capture.get() == &graph; });
  }
  static cudaError_t invalidate(CUstream_st& stream, cudaError_t error) {
    stream.capture->invalid = true;
    return error;
  }

  void tick(CUstream_st& stream) {
    join(stream.clock, known_);
    ++stream.clock[stream.number];
  }
  void push(CUstream_st& stream, operation what) {
    stream.queue.push_back(std::move(what));
    changed();
    if (random() % 4 == 0) run_some(random() % 8);
  }

  /// Runs the first operation of a stream, if it can.
  bool advance(CUstream_st& stream) {
    if (stream.queue.empty() || broken) return false;
    operation& now = stream.queue.front();
    if (now.waits != nullptr && !now.waits->done) return false;
    if (now.step != nullptr) {
      in_host_function = true;
      const bool done = now.step();
      in_host_function = false;
      if (!done) return false;
    }
    if (now.records != nullptr) now.records->done = true;
    stream.queue.pop_front();
    ++changes_;
    return true;
  }
  /// Runs up to so many operations; returns whether there was one.
  bool run_some(std::size_t most) {
    if (stalled_at_ == changes_ || broken) return false;
    const device_arena::unprotected writable{arena};
    bool any = false;
    std::vector<CUstream_st*> order{streams.begin(), streams.end()};
    // An operation that waits for another stream may be free once that has looked, too: all are asked twice.
    for (int fruitless = 0; most > 0 && fruitless < 2;) {
      std::shuffle(order.begin(), order.end(), random);
      const std::uint64_t before = changes_;
      if (std::none_of(order.begin(), order.end(), [&](CUstream_st* one) { return advance(*one); })) {
        fruitless = changes_ == before ? fruitless + 1 : 0;
        if (fruitless == 2) stalled_at_ = changes_;
        continue;
      }
      fruitless = 0;
      any = true;
      --most;
    }
    if (any) enqueued.notify_all();
    return any;
  }
  template <class Done>
  void run_until(std::unique_lock<std::mutex>& lock, const Done& done) {
    while (!done() && !broken) {
      if (run_some(1)) continue;
      // Another thread may yet enqueue what is waited for, or run it.
      if (enqueued.wait_for(lock, std::chrono::seconds{60}) == std::cv_status::timeout && !done() && !run_some(1)) {
        std::fprintf(stderr, "runtime double: a stream that is synchronised stands still\n");
        std::abort();
      }
    }
  }

  std::uint64_t changes_ = 1;     // of what streams hold
  std::uint64_t stalled_at_ = 0;  // the last of them when nothing could run
  vector_clock known_;            // to the host: what it has synchronised with
  int next_number_ = 0;
  std::vector<failure> to_fail_;
  int ignored_ = -1;
};

}  // namespace cuda_double
