// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include "orrery/detail/initializer_text.hpp"
#include "orrery/device/context.hpp"
#include "orrery/device/handles.hpp"
#include "orrery/device/query.hpp"
#include "orrery/schedule/detail/counted.hpp"
#include "orrery/transport/detail/deadline.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/transport/transport.hpp"

/// Ranks that are streams of one process, on one or several CUDA devices, each driven by a host thread.
///
/// A call only enqueues. A thread enqueues a copy when all events that the copy waits for have been recorded. So
/// everything that is enqueued waits only for work enqueued before it, and the devices cannot deadlock in whatever
/// order they run it. The host threads synchronize for this: in `await` a rank's thread waits, up to the deadline,
/// until its peer's thread has posted the same exchange. It never waits for a device.
namespace orrery::device {

struct options {
  /// Seconds for which a rank's thread waits for another one before both fail with a message.
  double deadline = 60;
  /// The devices: rank r computes on `devices[r % devices.size()]`. Empty: all devices that the process sees.
  std::vector<int> devices{};
  /// The streams: the calls of rank r are enqueued on `streams[r]`, which must be a stream of its device. Empty: each
  /// rank makes its own.
  std::vector<cudaStream_t> streams{};
};

/// The options as their designated initialiser, without what has its default: "{.devices = {0, 1}}". Of streams, which
/// are addresses, it has their number only.
[[nodiscard]] inline std::string to_string(const options& o) {
  const options defaults;
  orrery::detail::initializer_text text;
  text.member("deadline", o.deadline, defaults.deadline).member("devices", o.devices, defaults.devices);
  if (!o.streams.empty())
    text.member("streams", orrery::detail::initializer_text::code{"/* " + std::to_string(o.streams.size()) + " */"});
  return text.text();
}

/// The state that the ranks of a world share.
class group {
 public:
  /// Throws `std::invalid_argument` if the number of ranks or the deadline is not positive, if the number of streams is
  /// not that of the ranks, if a device does not exist, or if devices differ in compute capability. Throws
  /// `device_error` if there is no device.
  group(int ranks, options options)
      : host_{checked(ranks, options), {.deadline = options.deadline}},
        options_{std::move(options)},
        published_events_(static_cast<std::size_t>(ranks)) {}

  [[nodiscard]] threads::shared_world& host() noexcept { return host_; }
  [[nodiscard]] int device(int rank) const noexcept {
    return options_.devices[static_cast<std::size_t>(rank) % options_.devices.size()];
  }
  /// The trainer's stream; null if the rank makes its own.
  [[nodiscard]] cudaStream_t stream(int rank) const noexcept {
    return options_.streams.empty() ? nullptr : options_.streams[static_cast<std::size_t>(rank)];
  }
  [[nodiscard]] const std::vector<int>& devices() const noexcept { return options_.devices; }
  /// Held by the thread that enqueues, while a graph is captured (see `capture`).
  [[nodiscard]] std::mutex& capture_mutex() noexcept { return capture_mutex_; }
  /// True while streams are being captured.
  [[nodiscard]] std::atomic<bool>& capturing() noexcept { return capturing_; }
  /// The number of ranks that enqueue into the graph; changed under `capture_mutex()`.
  [[nodiscard]] std::atomic<int>& enqueuing() noexcept { return enqueuing_; }
  /// An event of each rank, published to the others between two barriers.
  [[nodiscard]] std::vector<std::shared_ptr<detail::cuda_event>>& published_events() noexcept {
    return published_events_;
  }

 private:
  [[noreturn]] static void refuse(const std::string& why) { throw std::invalid_argument{"orrery: device::" + why}; }

  /// Returns the number of ranks, if the options are valid; fills in the devices.
  static int checked(int ranks, options& options) {
    if (ranks < 1) refuse("group: the number of ranks is " + std::to_string(ranks) + ", expected at least 1");
    if (const std::string wrong = detail::options_error(options.deadline, 1); !wrong.empty())
      refuse("options: " + wrong);
    if (!options.streams.empty() && options.streams.size() != static_cast<std::size_t>(ranks)) {
      refuse("options: there are " + std::to_string(options.streams.size()) + " streams for " +
             detail::counted_ranks(ranks) + "; give one for each rank, or none");
    }
    int visible = 0;
    detail::check_cuda(cudaGetDeviceCount(&visible), "cudaGetDeviceCount");
    if (visible < 1) throw device_error{cudaErrorNoDevice, "orrery: device::group: this process sees no CUDA device"};
    if (options.devices.empty()) {
      for (int device = 0; device < visible; ++device) options.devices.push_back(device);
    }
    for (const int device : options.devices) {
      if (device < 0 || device >= visible) {
        refuse("options: there is no device " + std::to_string(device) + "; this process sees " +
               std::to_string(visible));
      }
      const std::string first = capability(options.devices[0]);
      const std::string other = capability(device);
      if (other != first) {
        refuse("options: device " + std::to_string(options.devices[0]) + " has compute capability " + first +
               " and device " + std::to_string(device) + " has " + other +
               "; kernels differ between the two, so name devices of one kind");
      }
    }
    return ranks;
  }
  [[nodiscard]] static std::string capability(int device) {
    int major = 0;
    int minor = 0;
    detail::check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                       "cudaDeviceGetAttribute");
    detail::check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                       "cudaDeviceGetAttribute");
    return std::to_string(major) + "." + std::to_string(minor);
  }

  threads::shared_world host_;
  options options_;
  std::mutex capture_mutex_;
  std::atomic<bool> capturing_{false};
  std::atomic<int> enqueuing_{0};
  std::vector<std::shared_ptr<detail::cuda_event>> published_events_;
};

/// One rank's streams. Kernels run on one of them. Copies to this rank run on others, one for each lane, so that
/// messages of different lanes do not wait for each other.
class rank_streams {
 public:
  /// Throws `std::invalid_argument` if the stream that is given is of another device.
  rank_streams(int device, cudaStream_t given) : device_{device}, compute_{given} {
    make_current();
    if (given == nullptr) {
      compute_ = owned_.emplace_back().get();
    } else {
      expect_of_device(given);
    }
  }

  [[nodiscard]] int device() const noexcept { return device_; }
  [[nodiscard]] cudaStream_t compute() const noexcept { return compute_; }
  /// The stream of a lane; made at the first call.
  [[nodiscard]] cudaStream_t copies(int lane) {
    while (copies_.size() <= static_cast<std::size_t>(lane)) copies_.emplace_back();
    return copies_[static_cast<std::size_t>(lane)].get();
  }
  void make_current() const { detail::check_cuda(cudaSetDevice(device_), "cudaSetDevice"); }

  /// Sets the mutex that the rank's thread holds while it enqueues, and not while it waits for others; null: none.
  void set_capture_mutex(std::mutex* capture_mutex) noexcept { capture_mutex_ = capture_mutex; }
  /// Releases the mutex while it lives: the rank waits, and others enqueue.
  class pause {
   public:
    explicit pause(const rank_streams& streams) : capture_mutex_{streams.capture_mutex_} {
      if (capture_mutex_ != nullptr) capture_mutex_->unlock();
    }
    pause(const pause&) = delete;
    pause& operator=(const pause&) = delete;
    ~pause() {
      if (capture_mutex_ != nullptr) capture_mutex_->lock();
    }

   private:
    std::mutex* capture_mutex_;
  };

 private:
  void expect_of_device(cudaStream_t given) const {
    const detail::cuda_event of_device;
    const cudaError_t code = cudaEventRecord(of_device.get(), given);
    if (code == cudaErrorInvalidResourceHandle) {
      detail::ignore_cuda(code);
      throw std::invalid_argument{
          "orrery: device::options: a stream is given to a rank on device " + std::to_string(device_) +
          ", but CUDA does not take it there; give each rank a stream of its own device, or none"};
    }
    detail::check_cuda(code, "cudaEventRecord");
  }

  int device_;
  cudaStream_t compute_;
  std::vector<detail::cuda_stream> owned_;
  std::vector<detail::cuda_stream> copies_;
  std::mutex* capture_mutex_ = nullptr;
};

/// One message of a plan. Its copy runs on the receiver's stream of the lane: after what the kernels of both ranks did
/// before they posted it, and before what they do after they have awaited it.
///
/// An event is recorded again in the next call only. A rank begins that when everything that waits for the event in
/// this call has been enqueued.
class message {
 public:
  struct end {
    std::shared_ptr<rank_streams> streams;

    void enter() const { streams->make_current(); }
    [[nodiscard]] device_context context() const noexcept { return {streams->compute()}; }
    [[nodiscard]] rank_streams::pause pause() const { return rank_streams::pause{*streams}; }
    void settle() const noexcept { detail::ignore_cuda(cudaStreamSynchronize(streams->compute())); }
  };

  void expect(const end& receiver, int lane, const std::vector<piece>& received) {
    copies_ = receiver.streams->copies(lane);
    to_device_ = receiver.streams->device();
    receiver_.emplace();
    done_.emplace();
    for (const piece& part : received) transfers_.push_back({part.data, nullptr, part.bytes});
  }

  void connect(const end& sender, const std::vector<piece>& sent) {
    from_device_ = sender.streams->device();
    reaches_ = detail::can_access(to_device_, from_device_);
    sender_.emplace();
    std::vector<transfer_range> joined;
    for (std::size_t i = 0; i < sent.size(); ++i) {
      const transfer_range next{transfers_[i].to, sent[i].data, sent[i].bytes};
      if (next.bytes == 0) continue;
      if (!joined.empty() && joined.back().to + joined.back().bytes == next.to &&
          joined.back().from + joined.back().bytes == next.from) {
        joined.back().bytes += next.bytes;
      } else {
        joined.push_back(next);
      }
    }
    transfers_ = std::move(joined);
  }

  void leave(const end& sender) const { sender_->record(sender.streams->compute()); }
  void arrive(const end& receiver) const { receiver_->record(receiver.streams->compute()); }

  void copy() const {
    sender_->order(copies_);
    receiver_->order(copies_);
    for (const transfer_range& transfer : transfers_) {
      const auto bytes = static_cast<std::size_t>(transfer.bytes);
      if (reaches_) {
        detail::check_cuda(cudaMemcpyAsync(transfer.to, transfer.from, bytes, cudaMemcpyDefault, copies_),
                           "cudaMemcpyAsync");
      } else {  // through the host; cannot be captured everywhere
        detail::check_cuda(cudaMemcpyPeerAsync(transfer.to, to_device_, transfer.from, from_device_, bytes, copies_),
                           "cudaMemcpyPeerAsync");
      }
    }
    done_->record(copies_);
  }

  void finish(const end& either) const { done_->order(either.streams->compute()); }
  void settle() const noexcept { detail::ignore_cuda(cudaEventSynchronize(done_->get())); }

 private:
  struct transfer_range {
    std::byte* to;
    const std::byte* from;
    std::int64_t bytes;
  };

  cudaStream_t copies_ = nullptr;
  int to_device_ = 0;
  int from_device_ = 0;
  bool reaches_ = true;  // the receiver's device, the memory of the sender's
  std::vector<transfer_range> transfers_;
  std::optional<detail::cuda_event> sender_;    // on the sender's device: what is sent is complete
  std::optional<detail::cuda_event> receiver_;  // on the receiver's device: the destination may be written
  std::optional<detail::cuda_event> done_;
};

using channel = threads::basic_channel<message>;

/// One rank of the world. See `transport`.
///
/// Calls of its operators enqueue on `stream()` and return. Their results are complete on this stream, and after an
/// event recorded on it. Tensors must be memory that the device can read, and must outlive the enqueued work. Each
/// member, and each call of an operator, makes the rank's device the current one of the calling thread. All members but
/// `rank`, `size`, `device`, `stream` and `synchronize` are collective. Each rank needs a thread of its own, since
/// ranks wait for each other's threads.
class world {
 public:
  using memory = detail::device_memory;

  /// For a trainer with threads of its own; `run` makes one for each of its threads. The group must outlive it. Throws
  /// `device_error`.
  world(group& ranks, int rank)
      : host_{ranks.host(), rank},
        group_{&ranks},
        streams_{std::make_shared<rank_streams>(ranks.device(rank), ranks.stream(rank))} {
    for (const int other : ranks.devices()) reach(other);
  }

  [[nodiscard]] int rank() const noexcept { return host_.rank(); }
  [[nodiscard]] int size() const noexcept { return host_.size(); }
  [[nodiscard]] int device() const noexcept { return streams_->device(); }
  [[nodiscard]] cudaStream_t stream() const noexcept { return streams_->compute(); }
  [[nodiscard]] bool usable() const noexcept { return host_.usable(); }

  /// Waits for everything that is enqueued on this rank's stream. Throws `device_error` if any of it failed.
  void synchronize() const {
    streams_->make_current();
    detail::check_cuda(cudaStreamSynchronize(streams_->compute()), "cudaStreamSynchronize");
  }

  /// Returns when all ranks' threads have called it. Does not wait for their streams.
  void barrier() {
    streams_->make_current();
    const rank_streams::pause waiting{*streams_};
    host_.barrier();
  }
  [[nodiscard]] std::vector<std::string> all_gather(
      const std::string& text, detail::collective_call call = detail::collective_call::all_gather) {
    streams_->make_current();
    const rank_streams::pause waiting{*streams_};
    return host_.all_gather(text, call);
  }
  /// Gives up: the other ranks fail at once with "rank 2 failed " and `why`. Not collective.
  void abandon(const std::string& why) noexcept { host_.abandon(why); }
  /// Sums values in host memory; see `threads::world::all_reduce_sum`.
  template <class T, std::size_t extent>
  void all_reduce_sum(std::span<T, extent> values) {
    streams_->make_current();
    const rank_streams::pause waiting{*streams_};
    host_.all_reduce_sum(values);
  }

  [[nodiscard]] group& ranks() const noexcept { return *group_; }
  [[nodiscard]] rank_streams& streams() const noexcept { return *streams_; }

  /// Throws `transport_error` on every rank if a rank sends what its peer does not expect; the world stays usable.
  /// Costs three events for each message, and a stream for each lane that no plan had before.
  [[nodiscard]] channel open(const schedule::program& p, std::vector<exchange_pieces> pieces) try {
    streams_->make_current();
    return {group_->host(), rank(), p, std::move(pieces), message::end{streams_}};
  } catch (...) {
    give_up_on_exception(*this, "while it opened a plan");
    throw;
  }

 private:
  /// Enables peer access from this rank's device to the other device, if the hardware has it.
  void reach(int other) const {
    if (other == device() || !detail::can_access(device(), other)) return;
    const cudaError_t code = cudaDeviceEnablePeerAccess(other, 0);
    // A device can have at most eight peers without a switch; copies from the rest go through the host.
    if (code == cudaErrorPeerAccessAlreadyEnabled || code == cudaErrorTooManyPeers) {
      detail::ignore_cuda(code);
    } else {
      detail::check_cuda(code, "cudaDeviceEnablePeerAccess");
    }
  }

  threads::world host_;
  group* group_;
  std::shared_ptr<rank_streams> streams_;
};

static_assert(transport<world>);

/// Calls `body(world&)` on `ranks` new threads, each with its own rank, stream and device. Returns when all have ended
/// and their streams are idle. Rethrows exceptions as `threads::run` does. Throws what the constructor of `group`
/// throws.
///
///     orrery::device::run(8, [&](auto& world) {
///       orrery::attention<orrery::ring, orrery::device_flash<orrery::bfloat16>> attend{world, shape};
///       attend.forward(q, k, v, out, lse);  // enqueued on world.stream()
///     });
template <class Body>
void run(int ranks, const options& options, Body&& body) {
  group all{ranks, options};
  threads::run_ranks(all.host(), [&](int rank) {
    world local{all, rank};
    body(local);
    local.synchronize();
  });
}

template <class Body>
void run(int ranks, Body&& body) {
  run(ranks, options{}, body);
}

}  // namespace orrery::device
