// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

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

#include "orrery/device/context.hpp"
#include "orrery/device/handles.hpp"
#include "orrery/schedule/detail/counted.hpp"
#include "orrery/transport/detail/deadline.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/transport/transport.hpp"

/// Ranks that are streams of one process, on one or several CUDA devices, each driven by a thread of the host.
///
/// A call only enqueues. Who enqueues a copy has recorded, or has seen recorded, every event that it waits for: so all
/// that is enqueued waits for what was enqueued before, and no order in which the devices run it can stand still. For
/// this the threads of the host hand messages over to each other: a rank waits in `await`, up to the deadline, until
/// its peer's thread has come to the same exchange; never for a device.
namespace orrery::device {

struct options {
  /// How long a rank's thread waits for another's, in seconds, before both fail with a message.
  double deadline = 60;
  /// Rank r computes on device `devices[r % devices.size()]`. Empty: on all devices that the process sees, in turn.
  std::vector<int> devices{};
  /// The stream that rank r's calls are enqueued on, of its device (another is refused). Empty: each rank makes one of
  /// its own.
  std::vector<cudaStream_t> streams{};
};

/// What the ranks of a world share.
class group {
 public:
  /// Throws `std::invalid_argument` for a number of ranks or a deadline that is not positive, for as many streams as
  /// there are not ranks, and for devices that do not exist or differ in compute capability; `device_error` if there is
  /// no device.
  group(int ranks, options how)
      : host_{checked(ranks, how), {.deadline = how.deadline}},
        options_{std::move(how)},
        shown_(static_cast<std::size_t>(ranks)) {}

  [[nodiscard]] threads::shared_world& host() noexcept { return host_; }
  [[nodiscard]] int device(int rank) const noexcept {
    return options_.devices[static_cast<std::size_t>(rank) % options_.devices.size()];
  }
  /// The trainer's stream; null if the rank makes its own.
  [[nodiscard]] cudaStream_t stream(int rank) const noexcept {
    return options_.streams.empty() ? nullptr : options_.streams[static_cast<std::size_t>(rank)];
  }
  [[nodiscard]] const std::vector<int>& devices() const noexcept { return options_.devices; }
  /// Held by whoever enqueues while a graph is captured (see `capture`).
  [[nodiscard]] std::mutex& turn() noexcept { return turn_; }
  /// Are streams being captured?
  [[nodiscard]] std::atomic<bool>& capturing() noexcept { return capturing_; }
  /// How many ranks are about to enqueue into the graph; changed by whoever has the turn.
  [[nodiscard]] std::atomic<int>& enqueuing() noexcept { return enqueuing_; }
  /// An event of each rank, to be shown to the others between two barriers.
  [[nodiscard]] std::vector<std::shared_ptr<detail::cuda_event>>& shown() noexcept { return shown_; }

 private:
  [[noreturn]] static void refuse(const std::string& why) { throw std::invalid_argument{"orrery: device::" + why}; }

  /// The number of ranks, if all is well; fills in the devices.
  static int checked(int ranks, options& how) {
    if (ranks < 1) refuse("group: the number of ranks is " + std::to_string(ranks) + ", expected at least 1");
    if (const std::string wrong = detail::what_is_wrong_with(how.deadline, 1); !wrong.empty())
      refuse("options: " + wrong);
    if (!how.streams.empty() && how.streams.size() != static_cast<std::size_t>(ranks)) {
      refuse("options: there are " + std::to_string(how.streams.size()) + " streams for " +
             detail::counted_ranks(ranks) + "; give one for each rank, or none");
    }
    int visible = 0;
    detail::check_cuda(cudaGetDeviceCount(&visible), "cudaGetDeviceCount");
    if (visible < 1) throw device_error{cudaErrorNoDevice, "orrery: device::group: this process sees no CUDA device"};
    if (how.devices.empty()) {
      for (int device = 0; device < visible; ++device) how.devices.push_back(device);
    }
    for (const int device : how.devices) {
      if (device < 0 || device >= visible) {
        refuse("options: there is no device " + std::to_string(device) + "; this process sees " +
               std::to_string(visible));
      }
      const std::string first = capability(how.devices[0]);
      const std::string other = capability(device);
      if (other != first) {
        refuse("options: device " + std::to_string(how.devices[0]) + " has compute capability " + first +
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
  std::mutex turn_;
  std::atomic<bool> capturing_{false};
  std::atomic<int> enqueuing_{0};
  std::vector<std::shared_ptr<detail::cuda_event>> shown_;
};

/// One rank's streams: kernels run on one, copies to this rank on others, one for each lane, so that messages of
/// different lanes do not wait for each other.
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
  /// Makes what there is not yet.
  [[nodiscard]] cudaStream_t copies(int lane) {
    while (copies_.size() <= static_cast<std::size_t>(lane)) copies_.emplace_back();
    return copies_[static_cast<std::size_t>(lane)].get();
  }
  void make_current() const { detail::check_cuda(cudaSetDevice(device_), "cudaSetDevice"); }

  /// From now on the rank's thread holds this while it enqueues, and not while it waits for others; null: no more.
  void take_turns(std::mutex* turn) noexcept { turn_ = turn; }
  /// While it lives, the rank waits for others, and it is their turn.
  class pause {
   public:
    explicit pause(const rank_streams& of) : turn_{of.turn_} {
      if (turn_ != nullptr) turn_->unlock();
    }
    pause(const pause&) = delete;
    pause& operator=(const pause&) = delete;
    ~pause() {
      if (turn_ != nullptr) turn_->lock();
    }

   private:
    std::mutex* turn_;
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
  std::mutex* turn_ = nullptr;
};

/// One message of a plan. Its copy runs on the receiver's stream of the lane, after what the sender's and the
/// receiver's kernels did before they posted it, and before what they do after awaiting it.
///
/// An event is recorded again only in the next call, which a rank comes to when all that waits for it in this one has
/// been enqueued.
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
    for (const piece& one : received) transfers_.push_back({one.data, nullptr, one.bytes});
  }

  void connect(const end& sender, const std::vector<piece>& sent) {
    from_device_ = sender.streams->device();
    sender_.emplace();
    std::vector<transfer> joined;
    for (std::size_t i = 0; i < sent.size(); ++i) {
      const transfer next{transfers_[i].to, sent[i].data, sent[i].bytes};
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
    for (const transfer& one : transfers_) {
      const auto bytes = static_cast<std::size_t>(one.bytes);
      if (from_device_ == to_device_) {
        detail::check_cuda(cudaMemcpyAsync(one.to, one.from, bytes, cudaMemcpyDeviceToDevice, copies_),
                           "cudaMemcpyAsync");
      } else {  // through the host where the devices do not reach each other's memory
        detail::check_cuda(cudaMemcpyPeerAsync(one.to, to_device_, one.from, from_device_, bytes, copies_),
                           "cudaMemcpyPeerAsync");
      }
    }
    done_->record(copies_);
  }

  void finish(const end& either) const { done_->order(either.streams->compute()); }
  void settle() const noexcept { detail::ignore_cuda(cudaEventSynchronize(done_->get())); }

 private:
  struct transfer {
    std::byte* to;
    const std::byte* from;
    std::int64_t bytes;
  };

  cudaStream_t copies_ = nullptr;
  int to_device_ = 0;
  int from_device_ = 0;
  std::vector<transfer> transfers_;
  std::optional<detail::cuda_event> sender_;    // of the sender's device: what is sent is complete
  std::optional<detail::cuda_event> receiver_;  // of the receiver's: where it goes may be written
  std::optional<detail::cuda_event> done_;
};

using channel = threads::basic_channel<message>;

/// One rank of the world. See `transport`.
///
/// Calls of its operators enqueue on `stream()` and return; on this stream, or after an event recorded on it, their
/// results are there. Tensors are memory that the device can read, and stay until then. Each member makes the rank's
/// device the current one of the calling thread, and so does each call. All members but `rank`, `size`, `device`,
/// `stream` and `synchronize` are collective; each rank is used by one thread at a time, and no two by the same: a rank
/// waits for the others' threads.
class world {
 public:
  using memory = detail::device_memory;

  /// What `run` makes for each of its threads; for a trainer that has threads of its own. The group outlives it. Throws
  /// `device_error`.
  world(group& of, int rank)
      : host_{of.host(), rank},
        group_{&of},
        streams_{std::make_shared<rank_streams>(of.device(rank), of.stream(rank))} {
    for (const int other : of.devices()) reach(other);
  }

  [[nodiscard]] int rank() const noexcept { return host_.rank(); }
  [[nodiscard]] int size() const noexcept { return host_.size(); }
  [[nodiscard]] int device() const noexcept { return streams_->device(); }
  [[nodiscard]] cudaStream_t stream() const noexcept { return streams_->compute(); }
  [[nodiscard]] bool usable() const noexcept { return host_.usable(); }

  /// Waits until this rank's stream has done all that is enqueued. Throws `device_error` if any of it has failed.
  void synchronize() const {
    streams_->make_current();
    detail::check_cuda(cudaStreamSynchronize(streams_->compute()), "cudaStreamSynchronize");
  }

  /// Returns when all ranks' threads have called it; their streams may be at work.
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
  /// This rank gives up: the others fail at once with "rank 2 failed " and `why`. Not collective.
  void abandon(const std::string& why) noexcept { host_.abandon(why); }
  /// Of values in the memory of the host; see `threads::world::all_reduce_sum`.
  template <class T>
  void all_reduce_sum(std::span<T> values) {
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
  /// Lets this rank's device read and write the other's memory, if it can.
  void reach(int other) const {
    if (other == device()) return;
    int can = 0;
    detail::check_cuda(cudaDeviceCanAccessPeer(&can, device(), other), "cudaDeviceCanAccessPeer");
    if (can == 0) return;
    const cudaError_t code = cudaDeviceEnablePeerAccess(other, 0);
    // Devices without a switch reach at most eight others; copies from the rest go through the host.
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

/// Calls `body(world&)` on `ranks` new threads, each with its own rank, stream and device, and returns when all have
/// ended and their streams are idle. Exceptions are thrown here as by `threads::run`. Throws as `group` does.
///
///     orrery::device::run(8, [&](auto& world) {
///       orrery::attention<orrery::ring, orrery::device_flash<orrery::bfloat16>> attend{world, shape};
///       attend.forward(q, k, v, out, lse);  // enqueued on world.stream()
///     });
template <class Body>
void run(int ranks, const options& how, Body&& body) {
  group all{ranks, how};
  threads::run_ranks(all.host(), [&](int rank) {
    world mine{all, rank};
    body(mine);
    mine.synchronize();
  });
}

template <class Body>
void run(int ranks, Body&& body) {
  run(ranks, options{}, body);
}

}  // namespace orrery::device
