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
/// Calls enqueue on the trainer's stream and return; their results are complete on this stream. The trainer's
/// communicator and stream must outlive the world. The world makes communicators of its own (see `lane_communicators`).
/// On the trainer's communicator it calls nothing but one ncclCommSplit, when it is made. Make the communicator
/// nonblocking, as `join` does. On a blocking one, ncclCommSplit waits for ranks that do not come. So a separate thread
/// calls it; when the constructor throws at the deadline, that thread stays in it until the trainer aborts the
/// communicator (see `split_with_timeout`).
///
/// In a call, the host thread waits only for NCCL to enqueue. In `synchronize`, `barrier` and `all_gather` it waits for
/// other ranks. At the deadline, and when NCCL reports that a communicator has failed, it aborts all communicators,
/// which ends what waits on the device, and throws `transport_error`. While the trainer waits in cudaStreamSynchronize,
/// the watchdog does the same (see `options::watchdog_period`): the wait ends, the results on the stream are void, and
/// the next call throws.
///
/// Use a world from one thread at a time. All members but `rank`, `size`, `stream`, `usable`, `synchronize` and `watch`
/// are collective.
///
/// Each lane is a communicator, and lanes work concurrently: a GPU must have room for the kernels of all of them. Leave
/// NCCL_LAUNCH_ORDER_IMPLICIT at 0: with 1, NCCL's kernels on a device run one after the other, in an order that may
/// differ between ranks, which can deadlock. All ranks issue their calls in one order, whatever the schedule (see
/// nccl/order.hpp). NCCL refuses two ranks on one GPU.
///
/// Calls can be captured into a CUDA graph: they query no stream or event, and everything they order begins and ends on
/// the trainer's stream. Make one call before, since NCCL connects ranks at their first message, which is not possible
/// during capture. All ranks capture and launch the same calls in the same order.
///
/// NCCL keeps a communicator until all graphs that hold its calls are destroyed. So destroy, in this order: launchable
/// graphs (cudaGraphExec_t) and graphs (cudaGraph_t), operators, worlds, the trainer's communicator and stream. A world
/// that is destroyed before a graph of its calls waits for the graph up to the deadline, and then leaves its
/// communicators to a thread that ends with the graph; launching such a graph is undefined. An abort does not wait for
/// graphs: it ends what runs, and every call throws; destroy the graphs then, too.
class world {
 public:
  using memory = detail::device_memory;

  /// Collective. Throws `std::invalid_argument` for a null communicator, for a stream of another device than the
  /// communicator's, and for invalid options. Throws `device_error` and `transport_error`. Costs a communicator, and
  /// events.
  world(ncclComm_t comm, cudaStream_t stream, const options& options = {})
      : own_{std::make_shared<communicators>(comm, stream, options)}, exceptions_{std::uncaught_exceptions()} {}
  world(const world&) = delete;
  world& operator=(const world&) = delete;
  /// Collective, except on a rank that leaves by an exception: that rank aborts its communicators.
  ~world() {
    if (std::uncaught_exceptions() > exceptions_) own_->give_up("it has ended by an exception");
  }

  [[nodiscard]] int rank() const noexcept { return own_->rank(); }
  [[nodiscard]] int size() const noexcept { return own_->size(); }
  [[nodiscard]] cudaStream_t stream() const noexcept { return own_->compute(); }
  /// Returns false after a failure. From then on every other member throws its message.
  [[nodiscard]] bool usable() const noexcept { return !own_->failed(); }

  /// Waits for everything that is enqueued on the trainer's stream. Throws after the deadline.
  void synchronize() {
    own_->enter("waiting for its stream");
    own_->synchronize(own_->compute());
  }
  /// Calls `enqueue()`, and lets the watchdog supervise what it enqueues on the trainer's stream. For launches of a
  /// graph into which calls were captured.
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
  /// Returns the texts of all ranks. `call` is the kind that the ranks' signatures are compared by. Allocates device
  /// memory for the texts temporarily.
  [[nodiscard]] std::vector<std::string> all_gather(
      const std::string& text, detail::collective_call call = detail::collective_call::all_gather) {
    return own_->all_gather(text, {call});
  }
  /// Gives up: aborts this rank's communicators. The others learn it from NCCL or at their deadline. Not collective.
  void abandon(const std::string& why) noexcept {
    try {
      own_->give_up("rank " + std::to_string(rank()) + " failed " + why);
    } catch (...) {  // no memory for a message: the others fail at their deadline
    }
  }

  /// Replaces the values of all ranks, in host memory, by their sums, added in the order of the ranks, so that every
  /// rank gets the same bits. Each rank receives P times the bytes of the values. Throws `std::invalid_argument` on
  /// every rank if ranks pass different counts or types.
  template <class T, std::size_t extent>
  void all_reduce_sum(std::span<T, extent> given) {
    const std::span<T> values = given;
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

  /// Opens a plan. Throws `transport_error` on all ranks if a rank sends what its peer does not expect, or if the
  /// programs would deadlock. Costs one communicator for each lane, and for each set of groups of native collectives,
  /// that no plan had before, and two events for each group of messages.
  [[nodiscard]] channel open(const schedule::program& p, std::vector<exchange_pieces> pieces) {
    own_->enter("opening a plan");
    return {own_, p, std::move(pieces)};
  }

 private:
  std::shared_ptr<communicators> own_;
  int exceptions_;
};

static_assert(transport<world>);

/// Makes a nonblocking communicator of `size` ranks, on the current device of the calling thread. Collective. Rank 0
/// makes the id by ncclGetUniqueId and gives it to the others (by MPI, a file, a socket). Throws `device_error` if
/// there is no device, and `transport_error` if a rank does not come before the deadline, or if NCCL fails, with its
/// message.
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
