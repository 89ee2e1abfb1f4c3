// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The functions of NCCL.
#include "transport/nccl/double.hpp"

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include "device/runtime_double.hpp"
#include "transport/nccl/double_cliques.hpp"

namespace nccl_double {

void reset() {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  nccl.counts.clear();
  nccl.to_fail.clear();
  nccl.async_errors.clear();
  nccl.calls.clear();
  nccl.faults.clear();
  nccl.words.clear();
  nccl.alive.clear();
  nccl.by_id.clear();
  nccl.version = NCCL_VERSION_CODE;
  nccl.priorities.clear();
  nccl.max_ctas.clear();
}
void set_version(int version) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  nccl.version = version;
}
void fail(const std::string& function, int nth, ncclResult_t result, const std::string& words) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  nccl.to_fail.push_back({function, nccl.counts[function] + nth, result, words});
}
void set_async_error(int rank, ncclResult_t result) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  nccl.async_errors[rank] = result;
}
std::vector<std::string> calls_of(int rank) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  return nccl.calls[rank];
}
int calls(const std::string& function) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  return nccl.counts[function];
}
bool is_enqueuing(int rank) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  return nccl.is_enqueuing(rank);
}
std::set<int> priorities() {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  return nccl.priorities;
}
std::set<int> max_ctas() {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  return nccl.max_ctas;
}
std::string faults() {
  library& nccl = library::get();
  std::unique_lock lock{nccl.mutex};
  // Threads may still be at it.
  nccl.changed.wait_for(lock, std::chrono::seconds{10}, [&] { return nccl.alive.empty(); });
  std::string all;
  for (const std::string& one : nccl.faults) all += one + "\n";
  if (!nccl.alive.empty()) all += std::to_string(nccl.alive.size()) + " communicators are left";
  return all;
}

}  // namespace nccl_double

using namespace nccl_double;

extern "C" {

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclSystemError:
      return "unhandled system error";
    default:
      return "another NCCL error";
  }
}

const char* ncclGetLastError(ncclComm_t) {
  static thread_local std::string said;
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  said = nccl.words;
  return said.c_str();
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  const std::string text = "id " + std::to_string(++nccl.ids);
  std::memset(id->internal, 0, sizeof(id->internal));
  std::memcpy(id->internal, text.data(), text.size());
  return nccl.enter("ncclGetUniqueId");
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
  int device = 0;
  static_cast<void>(cudaGetDevice(&device));
  library& nccl = library::get();
  std::unique_lock lock{nccl.mutex};
  if (const ncclResult_t result = nccl.enter("ncclCommInitRankConfig"); result != ncclSuccess) return result;
  *comm = nccl.make(rank, device);
  (*comm)->rank = rank;
  (*comm)->blocking = config == nullptr || config->blocking != 0;
  std::shared_ptr<clique>& all = nccl.by_id[std::string{id.internal}];
  if (all == nullptr) all = std::make_shared<clique>();
  all->size = static_cast<std::size_t>(size);
  all->members[rank] = *comm;
  if (all->members.size() == all->size) {
    for (auto& [of, member] : all->members) member->all = all;
    nccl.changed.notify_all();
  } else if ((*comm)->blocking) {
    nccl.changed.wait(lock, [made = *comm] { return made->all != nullptr; });
  } else {
    return ncclInProgress;
  }
  return ncclSuccess;
}

ncclResult_t ncclCommSplit(ncclComm_t parent, int color, int, ncclComm_t* made, ncclConfig_t* config) {
  library& nccl = library::get();
  std::unique_lock lock{nccl.mutex};
  *made = nullptr;
  if (const ncclResult_t result = nccl.enter("ncclCommSplit"); result != ncclSuccess) return result;
  if (nccl.is_enqueuing(parent->world_rank)) {
    nccl.faults.push_back("a rank splits a communicator while its calls are not enqueued yet");
  }
  nccl.max_ctas.insert(config->maxCTAs);
  const std::shared_ptr<clique> all = parent->all;
  const std::size_t index = all->splittings_of[parent->rank]++;
  if (all->splittings.size() <= index) all->splittings.resize(index + 1);
  clique::splitting& splitting = all->splittings[index];
  const ncclComm_t child = color == NCCL_SPLIT_NOCOLOR ? nullptr : nccl.make(parent->world_rank, parent->device);
  splitting.asked[parent->rank] = {color, child, made};
  if (splitting.asked.size() < all->size) {
    if (!parent->blocking) return ncclInProgress;
    nccl.changed.wait(lock, [&] { return splitting.done || nccl.alive.count(parent) == 0; });
    return splitting.done ? ncclSuccess : ncclInternalError;
  }
  std::map<int, std::shared_ptr<clique>> by_color;
  for (const auto& [rank, one] : splitting.asked) {
    if (one.child == nullptr) continue;
    std::shared_ptr<clique>& of = by_color[one.color];
    if (of == nullptr) of = std::make_shared<clique>();
    one.child->rank = static_cast<int>(of->members.size());
    of->members[one.child->rank] = one.child;
    of->size = of->members.size();
    one.child->all = of;
    *one.where = one.child;
  }
  splitting.done = true;
  nccl.changed.notify_all();
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  library& nccl = library::get();
  std::function<ncclResult_t()> enqueue;
  {
    const guard lock{nccl.mutex};
    if (nccl.alive.count(comm) == 0) return ncclInvalidArgument;
    if (const ncclResult_t result = nccl.enter("ncclCommGetAsyncError"); result != ncclSuccess) return result;
    const auto found = nccl.async_errors.find(comm->world_rank);
    *state = found != nccl.async_errors.end()                                         ? found->second
             : comm->all == nullptr || (comm->pending && !comm->pending->connected()) ? ncclInProgress
                                                                                      : ncclSuccess;
    library::each_open(
        *comm, [&](const auto&, auto) { *state = found != nccl.async_errors.end() ? found->second : ncclInProgress; });
    if (comm->pending == nullptr) return ncclSuccess;
    if (comm->pending->caller != std::this_thread::get_id()) {
      nccl.faults.push_back("a communicator is asked by a thread while another one's call is not enqueued yet");
    }
    if (*state != ncclSuccess) return ncclSuccess;
    enqueue = std::move(comm->pending->enqueue);
    comm->pending.reset();
  }
  *state = enqueue();
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  {
    library& nccl = library::get();
    const guard lock{nccl.mutex};
    static_cast<void>(nccl.enter("ncclCommAbort"));
    if (!nccl.begin_reclaim(*comm)) nccl.faults.push_back("a communicator is aborted that is gone");
    comm->aborted = true;
    nccl.leave(*comm);
  }
  cuda_double::wake();
  return reclaim_grouped("ncclCommAbort", comm);
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  {
    library& nccl = library::get();
    const guard lock{nccl.mutex};
    static_cast<void>(nccl.enter("ncclCommDestroy"));
    if (!nccl.begin_reclaim(*comm)) nccl.faults.push_back("a communicator is destroyed that is gone");
    if (comm->pending != nullptr) nccl.faults.push_back("a communicator is destroyed before its last call is enqueued");
    nccl.leave(*comm);
  }
  return reclaim_grouped("ncclCommDestroy", comm);
}
ncclResult_t ncclGetVersion(int* version) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  *version = nccl.version;
  return ncclSuccess;
}
ncclResult_t ncclCommCount(ncclComm_t comm, int* count) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  *count = static_cast<int>(comm->all->size);
  return nccl.enter("ncclCommCount");
}
ncclResult_t ncclCommUserRank(ncclComm_t comm, int* rank) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  *rank = comm->rank;
  return nccl.enter("ncclCommUserRank");
}
ncclResult_t ncclCommCuDevice(ncclComm_t comm, int* device) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  *device = comm->device;
  return nccl.enter("ncclCommCuDevice");
}

ncclResult_t ncclGroupStart() {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  const ncclResult_t result = nccl.enter("ncclGroupStart");
  if (result == ncclSuccess) ++depth;
  return result;
}
ncclResult_t ncclGroupEnd() {
  bool reclaims = false;
  {
    library& nccl = library::get();
    const guard lock{nccl.mutex};
    --depth;
    reclaims = depth == 0 && !to_reclaim.empty();
    if (const ncclResult_t result = nccl.enter("ncclGroupEnd"); result != ncclSuccess && !reclaims) {
      grouped.clear();
      grouped_collectives.clear();
      return result;
    }
  }
  if (reclaims) {
    for (const auto& [function, comm] : std::exchange(to_reclaim, {})) reclaim(function, comm);
  }
  return depth > 0 ? ncclSuccess : run_group();
}
ncclResult_t ncclSend(const void* from, std::size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add_to_group("ncclSend", {comm, stream, true, peer, static_cast<std::byte*>(const_cast<void*>(from)), count});
}
ncclResult_t ncclRecv(void* to, std::size_t count, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t stream) {
  return add_to_group("ncclRecv", {comm, stream, false, peer, static_cast<std::byte*>(to), count});
}
ncclResult_t ncclAllGather(const void* from, void* to, std::size_t count, ncclDataType_t, ncclComm_t comm,
                           cudaStream_t stream) {
  return collective(
      "ncclAllGather", "all-gather", from, count, to, count, [](int) { return std::size_t{0}; }, comm, stream);
}
ncclResult_t ncclAlltoAll(const void* from, void* to, std::size_t count, ncclDataType_t, ncclComm_t comm,
                          cudaStream_t stream) {
  return collective(
      "ncclAlltoAll", "all-to-all", from, count * comm->all->size, to, count,
      [](int rank) { return static_cast<std::size_t>(rank); }, comm, stream);
}

}  // extern "C"
