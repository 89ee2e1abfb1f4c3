// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "orrery/device/handles.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/detail/deadline.hpp"
#include "orrery/transport/nccl/channel.hpp"
#include "orrery/transport/nccl/communicator.hpp"
#include "orrery/transport/nccl/communicators.hpp"
#include "orrery/transport/nccl_options.hpp"
#include "orrery/transport/transport.hpp"

/// Ranks that are members of an NCCL communicator: one process, or thread, for each GPU.
namespace orrery::nccl {

/// One rank of an NCCL communicator. See `transport`.
///
///     orrery::nccl::world world{comm, stream};  // the trainer's
///     orrery::attention<orrery::wallfacer<2>, orrery::device_flash<orrery::bfloat16>> attend{world, shape};
///
/// Calls enqueue on the trainer's stream and return; on this stream their results are there. The world makes
/// communicators of its own (see `lines`) and issues nothing on the trainer's but one ncclCommSplit, when it is made;
/// the trainer's communicator and stream outlive it. Make the communicator not blocking, as `join` does: on a blocking
/// one ncclCommSplit waits for ranks that do not come, so a thread calls it, and at the deadline, when the constructor
/// throws, that thread stays in it until the trainer aborts its communicator (see `split_with_timeout`). A host thread
/// waits in a call only for NCCL to have enqueued, and in `synchronize`, `barrier` and `all_gather`, up to the
/// deadline; then, and when NCCL says that a communicator has failed, it aborts its communicators, which ends what
/// waits on the device, and throws `transport_error`. While the trainer waits in cudaStreamSynchronize, the watchdog
/// does the same (see `options::watchdog_period`): its wait ends, what is on the stream is void, and the next call
/// throws. For one thread at a time. All members but `rank`, `size`, `stream`, `usable`, `synchronize` and `watch` are
/// collective.
///
/// Lanes are communicators at work side by side: a GPU must have room for the kernels of all of them, or NCCL be told
/// to keep their order (NCCL_LAUNCH_ORDER_IMPLICIT=1, from 2.26 on); all ranks issue in one order, whatever their
/// schedule (see nccl_order.hpp). NCCL refuses two ranks on one GPU.
///
/// A call can be captured into a CUDA graph: it asks no stream or event, and all that it orders begins and ends on the
/// trainer's stream. Call once before, since NCCL connects ranks at their first message, which no capture allows; all
/// ranks capture and launch the same calls in the same order.
class world {
 public:
  using memory = detail::device_memory;

  /// Throws `std::invalid_argument` for a communicator that is null, a stream of another device than its, or a deadline
  /// that is not positive (or a period that is negative), `device_error` and `transport_error`. Costs a communicator,
  /// and events.
  world(ncclComm_t comm, cudaStream_t stream, const options& options = {})
      : own_{std::make_shared<communicators>(comm, stream, options)}, exceptions_{std::uncaught_exceptions()} {}
  world(const world&) = delete;
  world& operator=(const world&) = delete;
  /// Collective, but for a rank that leaves by an exception: that aborts.
  ~world() {
    if (std::uncaught_exceptions() > exceptions_) own_->give_up("it has ended by an exception");
  }

  [[nodiscard]] int rank() const noexcept { return own_->rank(); }
  [[nodiscard]] int size() const noexcept { return own_->size(); }
  [[nodiscard]] cudaStream_t stream() const noexcept { return own_->compute(); }
  /// False after a failure: from then on every other member throws its message.
  [[nodiscard]] bool usable() const noexcept { return !own_->failed(); }

  /// Waits until the trainer's stream has done all that is enqueued, or throws after the deadline.
  void synchronize() {
    own_->enter("waiting for its stream");
    own_->synchronize(own_->compute());
  }
  /// Lets the watchdog see what `enqueue()` enqueues on the trainer's stream, as it sees calls: for the launch of a
  /// graph that calls were captured into.
  ///
  ///     world.watch([&] { check(cudaGraphLaunch(step, world.stream())); });
  template <class Enqueue>
  void watch(const Enqueue& enqueue) {
    own_->enter("enqueuing a graph");
    own_->call_begins(nullptr);
    enqueue();
    own_->call_ends();
  }
  /// Returns when all ranks have called it.
  void barrier() { static_cast<void>(own_->all_gather("", {detail::collective_call::barrier})); }
  /// The texts of all ranks, of a call that is compared as `call`. Takes device memory for them for a while.
  [[nodiscard]] std::vector<std::string> all_gather(
      const std::string& text, detail::collective_call call = detail::collective_call::all_gather) {
    return own_->all_gather(text, {call});
  }
  /// This rank gives up and aborts its communicators: NCCL, or their deadline, tells the others. Not collective.
  void abandon(const std::string& why) noexcept {
    try {
      own_->give_up("rank " + std::to_string(rank()) + " failed " + why);
    } catch (...) {  // no memory for a message: the others have their deadline
    }
  }

  /// Replaces the values of all ranks, in the memory of the host, by their sums, added in the order of the ranks: every
  /// rank gets the same bits. P times their bytes are received. Throws `std::invalid_argument` on every rank if they do
  /// not all give equally many values of one type.
  template <class T>
  void all_reduce_sum(std::span<T> values) {
    static_assert(std::is_trivially_copyable_v<T>, "orrery: all_reduce_sum: the values are sent as bytes");
    std::string local(values.size_bytes(), '\0');
    if (!local.empty()) std::memcpy(local.data(), values.data(), local.size());
    const std::vector<std::string> all = own_->all_gather(local, detail::collective_signature::sum<T>(values.size()));
    for (std::size_t i = 0; i < values.size(); ++i) {
      T sum{};
      for (const std::string& values_of_rank : all) {
        T value;
        std::memcpy(&value, values_of_rank.data() + i * sizeof(T), sizeof(T));
        sum += value;
      }
      values[i] = sum;
    }
  }

  /// Throws `transport_error` on all ranks if a rank sends what its peer does not expect, or the programs would wait
  /// for ever. Costs a communicator for each lane, and each set of groups of native collectives, that no plan had
  /// before; two events for each group of messages.
  [[nodiscard]] channel open(const schedule::program& p, std::vector<exchange_pieces> pieces) {
    own_->enter("opening a plan");
    return {own_, p, std::move(pieces)};
  }

 private:
  std::shared_ptr<communicators> own_;
  int exceptions_;
};

static_assert(transport<world>);

/// A new communicator of `size` ranks on the calling thread's current device, not blocking: collective. Rank 0 makes
/// the id by ncclGetUniqueId and gives it to the others (by MPI, a file, a socket). Throws `device_error` where there
/// is no device, and `transport_error` if not all have come before the deadline, or NCCL refuses, with its words.
[[nodiscard]] inline communicator join(const ncclUniqueId& id, int rank, int size, double deadline = 60) {
  int devices = 0;
  detail::check_cuda(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  communicator made;
  ncclConfig_t config = not_blocking();
  const ncclResult_t result = ncclCommInitRankConfig(made.address(), size, id, rank, &config);
  const std::string wrong = wait_for(made.get(), result, "ncclCommInitRankConfig", detail::deadline_in(deadline));
  if (!wrong.empty()) {
    made.abort();
    throw transport_error{"orrery: rank " + std::to_string(rank) + " of " + std::to_string(size) + ": " + wrong};
  }
  return made;
}

}  // namespace orrery::nccl
