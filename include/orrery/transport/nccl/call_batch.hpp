// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <memory>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "orrery/device/context.hpp"
#include "orrery/device/handles.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/nccl/lane_communicators.hpp"
#include "orrery/transport/nccl/order.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::nccl {

/// Sends the r-th `bytes` bytes at `from` to rank r of the communicator, and receives those of rank r as the r-th at
/// `to`. Calls ncclAlltoAll, or, before NCCL 2.28, the equivalent sends and receives.
[[nodiscard]] inline ncclResult_t all_to_all(const std::byte* from, std::byte* to, std::size_t bytes, int ranks,
                                             ncclComm_t comm, cudaStream_t stream) {
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)
  static_cast<void>(ranks);
  return ncclAlltoAll(from, to, bytes, ncclUint8, comm, stream);
#else
  ncclResult_t first = ncclGroupStart();
  const auto keep = [&](ncclResult_t result) {
    if (first == ncclSuccess || first == ncclInProgress) first = result;
  };
  for (int r = 0; r < ranks; ++r) {
    keep(ncclSend(from + static_cast<std::size_t>(r) * bytes, bytes, ncclUint8, r, comm, stream));
    keep(ncclRecv(to + static_cast<std::size_t>(r) * bytes, bytes, ncclUint8, r, comm, stream));
  }
  const ncclResult_t ended = ncclGroupEnd();
  return first == ncclSuccess || first == ncclInProgress ? ended : first;
#endif
}

struct call_batch;

/// The first call in a group that failed.
struct failed_call {
  ncclResult_t result = ncclSuccess;
  const char* name = "";
  const call_batch* batch = nullptr;
  int exchange = -1;  ///< -1: the batch's only call
  detail::direction direction = detail::direction::sending;

  void keep(ncclResult_t now, const char* call_name, const call_batch& in, int e = -1,
            detail::direction w = detail::direction::sending) {
    if (result != ncclSuccess || now == ncclSuccess || now == ncclInProgress) return;
    *this = {now, call_name, &in, e, w};
  }
};

/// Calls that are issued to the communicator of one lane together: sends and receives in one group, or one native
/// collective.
struct call_batch {
  ordered_call call;
  std::size_t number = 0;  // index in the plan
  nccl::lane_communicator* lane = nullptr;
  detail::cuda_event ready;
  detail::cuda_event done;
  // Of a native collective: memory of what it sends and receives, in the order of the group's ranks; the exchanges that
  // send to and receive from each of them (-1: this rank itself), and the bytes of each.
  schedule::collective_kind kind = schedule::collective_kind::all_gather;
  detail::device_memory sent;
  detail::device_memory received;
  std::vector<int> to_rank;
  std::vector<int> from_rank;
  std::size_t bytes = 0;

  /// Makes the calls of the batch. Call it inside a group of NCCL.
  void enqueue(const schedule::program& steps, const std::vector<exchange_pieces>& pieces, failed_call& failed) const {
    const cudaStream_t stream = lane->stream.get();
    const ncclComm_t comm = lane->comm.get();
    if (call.native >= 0 && kind == schedule::collective_kind::all_gather) {
      const piece& local = pieces[static_cast<std::size_t>(call.sends[0])].sent[0];
      failed.keep(ncclAllGather(local.data, received.data(), bytes, ncclUint8, comm, stream), "ncclAllGather", *this);
      return;
    }
    if (call.native >= 0) {
      failed.keep(all_to_all(sent.data(), received.data(), bytes, static_cast<int>(to_rank.size()), comm, stream),
                  "ncclAlltoAll", *this);
      return;
    }
    for (const int e : call.sends) {
      for (const piece& part : pieces[static_cast<std::size_t>(e)].sent) {
        if (part.bytes == 0) continue;
        const auto size = static_cast<std::size_t>(part.bytes);
        failed.keep(ncclSend(part.data, size, ncclUint8, steps.exchanges[e].to, comm, stream), "ncclSend", *this, e,
                    detail::direction::sending);
      }
    }
    for (const int e : call.receives) {
      for (const piece& part : pieces[static_cast<std::size_t>(e)].received) {
        if (part.bytes == 0) continue;
        const auto size = static_cast<std::size_t>(part.bytes);
        failed.keep(ncclRecv(part.data, size, ncclUint8, steps.exchanges[e].from, comm, stream), "ncclRecv", *this, e,
                    detail::direction::receiving);
      }
    }
  }

  /// Before an all-to-all: copies the blocks to send into one row.
  void pack(const std::vector<exchange_pieces>& pieces) const {
    if (call.native < 0 || kind == schedule::collective_kind::all_gather) return;
    for (std::size_t r = 0; r < to_rank.size(); ++r) {
      std::byte* to = sent.data() + r * bytes;
      if (to_rank[r] < 0) continue;
      for (const piece& part : pieces[static_cast<std::size_t>(to_rank[r])].sent) {
        copy(to, part.data, static_cast<std::size_t>(part.bytes));
        to += part.bytes;
      }
    }
  }
  /// After a native collective: copies the received blocks to their slots.
  void unpack(const std::vector<exchange_pieces>& pieces) const {
    if (call.native < 0) return;
    for (std::size_t r = 0; r < from_rank.size(); ++r) {
      const std::byte* from = received.data() + r * bytes;
      if (from_rank[r] < 0) continue;
      for (const piece& part : pieces[static_cast<std::size_t>(from_rank[r])].received) {
        copy(part.data, from, static_cast<std::size_t>(part.bytes));
        from += part.bytes;
      }
    }
  }

 private:
  void copy(std::byte* to, const std::byte* from, std::size_t size) const {
    detail::check_cuda(cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice, lane->stream.get()),
                       "cudaMemcpyAsync");
  }
};

}  // namespace orrery::nccl
