// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime_double.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>

#include <sys/mman.h>

namespace {

using cuda_double::accesses;
using cuda_double::bytes;

/// For each stream, by number, how many of its operations come before.
using vector_clock = std::map<int, std::uint64_t>;

void join(vector_clock& into, const vector_clock& other) {
  for (const auto& [stream, count] : other) {
    std::uint64_t& mine = into[stream];
    mine = (std::max)(mine, count);
  }
}

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

struct graph_node {
  accesses touches;
  std::function<bool()> step;
  std::vector<std::size_t> after;
};

struct captured_graph {
  std::vector<graph_node> nodes;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool invalid = false;
};

const std::byte* address(const void* of) { return static_cast<const std::byte*>(of); }

}  // namespace

struct CUstream_st {
  int number = 0;
  int device = 0;
  std::deque<operation> queue;
  vector_clock clock;
  std::shared_ptr<captured_graph> capture;  // null: none is under way
  std::vector<std::size_t> frontier;        // nodes of it that the next one comes after
  bool origin = false;
};
struct CUevent_st {
  int device = 0;
  std::shared_ptr<record> last;
  std::shared_ptr<captured_graph> capture;  // if it was recorded in one
  std::vector<std::size_t> frontier;
};
struct CUgraph_st {
  std::shared_ptr<captured_graph> made;
};
struct CUgraphExec_st {
  std::shared_ptr<captured_graph> made;
};

namespace {

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local std::optional<accesses> announced;
thread_local bool in_host_function = false;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

class simulated_runtime {
 public:
  static simulated_runtime& get() {
    static simulated_runtime one;
    return one;
  }

  std::mutex mutex;
  std::condition_variable enqueued;
  cuda_double::settings how;
  std::map<std::string, int> counts;
  std::vector<std::string> faults;
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

  void fault(const std::string& sentence) {
    if (faults.size() < 100) faults.push_back(sentence);
  }

  void reset(const cuda_double::settings& now) {
    if (const std::string left = leaks(); !left.empty()) {
      std::fprintf(stderr, "runtime double: reset while there are %s\n", left.c_str());
      std::abort();
    }
    how = now;
    counts.clear();
    faults.clear();
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
    add(allocations_.size(), "allocations");
    add(streams.size(), "streams");
    add(events.size(), "events");
    add(graphs.size(), "graphs");
    add(executables.size(), "executable graphs");
    return text;
  }

  cudaError_t allocate(void** to, std::size_t size) {
    if (used(current_device) + size > how.memory) return cudaErrorMemoryAllocation;
    // First fit, with a gap after each.
    std::size_t offset = 0;
    for (const auto& [begin, one] : allocations_) {
      if (begin - offset >= size + gap) break;
      offset = (begin + one.size + gap + alignment - 1) / alignment * alignment;
    }
    if (offset + size + gap > arena_size) return cudaErrorMemoryAllocation;
    allocations_[offset] = {size, current_device, {}};
    const unprotected writable{*this};
    std::memset(arena_ + offset, 0xff, size);
    *to = arena_ + offset;
    return cudaSuccess;
  }
  cudaError_t free(void* memory) {
    if (memory == nullptr) return cudaSuccess;
    const auto found = allocations_.find(static_cast<std::size_t>(address(memory) - arena_));
    if (!in_arena(memory) || found == allocations_.end()) return cudaErrorInvalidValue;
    for (const access& one : found->second.touched) {
      if (!broken && !comes_before(one, known_)) {
        fault("memory is freed which " + one.name + " may still " + (one.writes ? "write" : "read"));
      }
    }
    allocations_.erase(found);
    return cudaSuccess;
  }
  [[nodiscard]] std::size_t used(int device) const {
    std::size_t sum = 0;
    for (const auto& [begin, one] : allocations_) sum += one.device == device ? one.size : 0;
    return sum;
  }

  void add_stream(CUstream_st* stream) {
    stream->number = next_number_++;
    streams.insert(stream);
  }

  /// To the stream's end, or to the graph that it is captured into.
  cudaError_t enqueue(CUstream_st* stream, accesses what, std::function<bool()> step) {
    if (streams.count(stream) == 0) return misuse("the default stream, or one that is gone, is used");
    if (stream->capture != nullptr) {
      stream->capture->nodes.push_back({std::move(what), std::move(step), stream->frontier});
      stream->frontier = {stream->capture->nodes.size() - 1};
      return cudaSuccess;
    }
    tick(*stream);
    touch(what, stream->number, stream->clock);
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
    if (made->invalid) return cudaErrorStreamCaptureInvalidated;
    const std::size_t count = made->nodes.size();
    // before[i][j]: j comes before i.
    std::vector<std::vector<bool>> before(count, std::vector<bool>(count, false));
    std::vector<bool> joined(count, false);
    const auto add = [&](std::vector<bool>& to, std::size_t node) {
      to[node] = true;
      for (std::size_t j = 0; j < node; ++j) to[j] = to[j] || before[node][j];
    };
    for (std::size_t i = 0; i < count; ++i) {
      for (const std::size_t node : made->nodes[i].after) add(before[i], node);
    }
    for (const std::size_t node : last) add(joined, node);
    if (std::find(joined.begin(), joined.end(), false) != joined.end()) return cudaErrorStreamCaptureUnjoined;
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        if (!before[i][j] && conflict(made->nodes[i].touches, made->nodes[j].touches)) {
          fault("race in a graph: " + made->nodes[j].touches.name + " and " + made->nodes[i].touches.name);
        }
      }
    }
    return cudaSuccess;
  }
  cudaError_t launch(CUstream_st* stream, const std::shared_ptr<captured_graph>& graph) {
    accesses all{"a graph", {}, {}};
    for (const graph_node& node : graph->nodes) {
      all.reads.insert(all.reads.end(), node.touches.reads.begin(), node.touches.reads.end());
      all.writes.insert(all.writes.end(), node.touches.writes.begin(), node.touches.writes.end());
    }
    auto done = std::make_shared<std::vector<bool>>(graph->nodes.size(), false);
    return enqueue(stream, std::move(all), [this, graph, done] {
      // Nodes in a random order, as far as each can run; some may wait for what other streams run.
      std::vector<std::size_t> order(done->size());
      for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
      for (bool any = true; any;) {
        any = false;
        std::shuffle(order.begin(), order.end(), random);
        for (const std::size_t node : order) {
          const auto& after = graph->nodes[node].after;
          if ((*done)[node] || !std::all_of(after.begin(), after.end(), [&](std::size_t i) { return (*done)[i]; })) {
            continue;
          }
          if (!graph->nodes[node].step()) continue;
          (*done)[node] = true;
          any = true;
          ++changes_;
        }
      }
      return std::find(done->begin(), done->end(), false) == done->end();
    });
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
    touch({"cudaMemcpy", {{from, address(from) + size}}, {{to, address(to) + size}}}, -1, known_);
    const unprotected writable{*this};
    std::memcpy(to, from, size);
    return cudaSuccess;
  }

  cudaError_t misuse(const std::string& sentence) {
    fault(sentence);
    return cudaErrorInvalidResourceHandle;
  }

 private:
  static constexpr std::size_t arena_size = std::size_t{4} << 30;  // reserved, not used
  static constexpr std::size_t alignment = 256;
  static constexpr std::size_t gap = 256;

  struct access {
    std::string name;
    const std::byte* begin;
    const std::byte* end;
    bool writes;
    int stream;  // -1: the host
    std::uint64_t count;
  };
  struct allocation {
    std::size_t size = 0;
    int device = 0;
    std::vector<access> touched;
  };
  struct failure {
    std::string function;
    int nth;
    cudaError_t error;
    bool sticky;
  };
  /// While it lives, device memory may be touched.
  struct unprotected {
    simulated_runtime& of;
    explicit unprotected(simulated_runtime& runtime) : of{runtime} {
      if (of.open_++ == 0) of.protect(PROT_READ | PROT_WRITE);
    }
    unprotected(const unprotected&) = delete;
    unprotected& operator=(const unprotected&) = delete;
    ~unprotected() {
      if (--of.open_ == 0) of.protect(PROT_NONE);
    }
  };

  simulated_runtime() {
    void* const reserved = mmap(nullptr, arena_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) std::abort();
    arena_ = static_cast<std::byte*>(reserved);
  }

  void protect(int how_to) {
    if (mprotect(arena_, arena_size, how_to) != 0) std::abort();
  }
  [[nodiscard]] bool in_arena(const void* memory) const {
    return address(memory) >= arena_ && address(memory) < arena_ + arena_size;
  }

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

  [[nodiscard]] static bool comes_before(const access& one, const vector_clock& clock) {
    if (one.stream < 0) return true;
    const auto found = clock.find(one.stream);
    return found != clock.end() && found->second >= one.count;
  }

  /// Compares what a new operation touches with what others did.
  void touch(const accesses& what, int stream, const vector_clock& clock) {
    const std::uint64_t count = stream < 0 ? 0 : clock.at(stream);
    const auto one = [&](const bytes& range, bool writes) {
      if (range.begin == range.end || !in_arena(range.begin)) return;
      auto found = allocations_.upper_bound(static_cast<std::size_t>(address(range.begin) - arena_));
      if (found == allocations_.begin()) return fault(what.name + " touches memory that is not allocated");
      --found;
      if (address(range.end) > arena_ + found->first + found->second.size) {
        return fault(what.name + " touches memory outside of its allocation");
      }
      const access now{what.name, address(range.begin), address(range.end), writes, stream, count};
      std::vector<access>& touched = found->second.touched;
      for (const access& other : touched) {
        if (other.end <= now.begin || now.end <= other.begin || (!writes && !other.writes)) continue;
        if (other.stream == stream || comes_before(other, clock)) continue;
        fault("race: " + other.name + (other.writes ? " writes" : " reads") + " what " + now.name +
              (writes ? " writes" : " reads") + ", unordered");
      }
      std::erase_if(touched, [&](const access& other) {
        return now.begin <= other.begin && other.end <= now.end &&
               (writes || (other.stream == stream && !other.writes));
      });
      touched.push_back(now);
    };
    for (const bytes& range : what.reads) one(range, false);
    for (const bytes& range : what.writes) one(range, true);
  }
  static bool overlap(const std::vector<bytes>& a, const std::vector<bytes>& b) {
    for (const bytes& x : a) {
      for (const bytes& y : b) {
        if (address(x.begin) < address(y.end) && address(y.begin) < address(x.end)) return true;
      }
    }
    return false;
  }
  static bool conflict(const accesses& a, const accesses& b) {
    return overlap(a.writes, b.writes) || overlap(a.writes, b.reads) || overlap(a.reads, b.writes);
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
    const unprotected writable{*this};
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

  std::byte* arena_ = nullptr;
  int open_ = 0;
  std::uint64_t changes_ = 1;                      // of what streams hold
  std::uint64_t stalled_at_ = 0;                   // the last of them when nothing could run
  std::map<std::size_t, allocation> allocations_;  // by their offsets
  vector_clock known_;                             // to the host: what it has synchronised with
  int next_number_ = 0;
  std::vector<failure> to_fail_;
  int ignored_ = -1;
};

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
  return runtime.faults;
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
    } else {
      return cudaErrorInvalidValue;
    }
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
    *free = runtime.how.memory - runtime.used(current_device);
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
    return cudaSuccess;
  });
}
cudaError_t CUDARTAPI cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return release("cudaGraphExecDestroy", [&](simulated_runtime& runtime, lock_type&) {
    runtime.executables.erase(executable);
    delete executable;
    return cudaSuccess;
  });
}

}  // extern "C"
