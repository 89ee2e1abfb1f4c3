// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/nccl_double.hpp"

#include <cstddef>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include <cuda_runtime_api.h>

#include "cuda/runtime_double.hpp"

namespace {

/// One end of a message, or of a collective.
struct endpoint {
  std::byte* data;
  std::size_t bytes;
  bool started = false;
  bool done = false;
};

struct gathering {
  std::map<int, std::pair<const std::byte*, std::byte*>> of_rank;  // what it sends, and where all goes
  std::size_t bytes = 0;
  bool done = false;
};

/// What the ranks of a communicator share.
struct clique {
  std::size_t size = 0;
  std::map<int, ncclComm_t> members;
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<endpoint>>> sends, receives;  // by source and target
  std::map<int, std::size_t> gatherings_of;                                              // by rank: how many so far
  std::deque<std::shared_ptr<gathering>> gatherings;
  struct splitting {
    std::map<int, std::pair<int, ncclComm_t>> asked;  // by rank: color, and the communicator to be
  };
  std::map<int, std::size_t> splittings_of;
  std::deque<splitting> splittings;
};

}  // namespace

struct ncclComm {
  std::shared_ptr<clique> all;  // null: under way
  int rank = 0;
  int world_rank = 0;  // in the first communicator
  int device = 0;
  bool aborted = false;
};

namespace {

struct group_call {
  ncclComm_t comm;
  cudaStream_t stream;
  bool sends;
  int peer;
  std::byte* data;
  std::size_t bytes;
};

struct failure {
  std::string function;
  int nth;
  ncclResult_t result;
};

struct library {
  std::mutex mutex;
  std::map<std::string, int> counts;
  std::vector<failure> to_fail;
  std::map<int, ncclResult_t> async_errors;
  std::map<int, std::vector<std::string>> calls;
  std::vector<std::string> faults;
  std::set<ncclComm_t> alive;
  std::map<std::string, std::shared_ptr<clique>> by_id;
  int ids = 0;

  static library& get() {
    static library one;
    return one;
  }

  ncclResult_t enter(const char* function) {
    const int nth = ++counts[function];
    for (const failure& one : to_fail) {
      if (one.function == function && one.nth == nth) return one.result;
    }
    return ncclSuccess;
  }
  ncclComm_t make(int world_rank, int device) {
    const auto made = new ncclComm;
    made->world_rank = world_rank;
    made->device = device;
    alive.insert(made);
    return made;
  }
};

thread_local int depth = 0;
thread_local std::vector<group_call> grouped;

using guard = std::lock_guard<std::mutex>;

/// The ends of one group on one communicator and stream.
struct group_ends {
  struct one {
    std::shared_ptr<endpoint> mine;
    bool sends;
    std::pair<int, int> ranks;  // source and target
    std::size_t index;
  };
  ncclComm_t comm;
  std::shared_ptr<clique> all;
  std::vector<one> ends;
};

/// Moves what both ends have come for. Are all of the group's messages done?
bool meet(group_ends& group) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  if (nccl.alive.count(group.comm) == 0 || group.comm->aborted) return true;
  bool done = true;
  for (group_ends::one& one : group.ends) {
    one.mine->started = true;
    if (one.mine->done) continue;
    auto& others = (one.sends ? group.all->receives : group.all->sends)[one.ranks];
    if (one.index >= others.size() || !others[one.index]->started) {
      done = false;
      continue;
    }
    endpoint& other = *others[one.index];
    if (other.bytes != one.mine->bytes) {
      nccl.faults.push_back("a send of " + std::to_string(one.sends ? one.mine->bytes : other.bytes) +
                            " bytes meets a receive of another size");
    } else if (one.sends) {
      std::memcpy(other.data, one.mine->data, other.bytes);
    } else {
      std::memcpy(one.mine->data, other.data, other.bytes);
    }
    one.mine->done = other.done = true;
  }
  return done;
}

ncclResult_t run_group() {
  library& nccl = library::get();
  std::map<std::pair<ncclComm_t, cudaStream_t>, std::vector<group_call>> by_stream;
  for (const group_call& one : std::exchange(grouped, {})) by_stream[{one.comm, one.stream}].push_back(one);
  for (const auto& [where, calls] : by_stream) {
    auto group = std::make_shared<group_ends>();
    cuda_double::accesses touched{"an NCCL group", {}, {}};
    {
      const guard lock{nccl.mutex};
      group->comm = where.first;
      group->all = where.first->all;
      if (group->all == nullptr) return ncclInvalidUsage;
      std::string text = "group:";
      for (const group_call& one : calls) {
        const int me = where.first->rank;
        const std::pair<int, int> ranks = one.sends ? std::pair{me, one.peer} : std::pair{one.peer, me};
        auto& queue = (one.sends ? group->all->sends : group->all->receives)[ranks];
        queue.push_back(std::make_shared<endpoint>(endpoint{one.data, one.bytes}));
        group->ends.push_back({queue.back(), one.sends, ranks, queue.size() - 1});
        (one.sends ? touched.reads : touched.writes).push_back({one.data, one.data + one.bytes});
        text += std::string{text.back() == ':' ? " " : ", "} + (one.sends ? "send " : "receive ") +
                std::to_string(one.bytes) + (one.sends ? " to " : " from ") + std::to_string(one.peer);
      }
      nccl.calls[where.first->world_rank].push_back(text);
    }
    if (cuda_double::enqueue(where.second, std::move(touched), [group] { return meet(*group); }) != cudaSuccess) {
      return ncclUnhandledCudaError;
    }
  }
  return ncclSuccess;
}

ncclResult_t add_to_group(const char* function, const group_call& one) {
  {
    library& nccl = library::get();
    const guard lock{nccl.mutex};
    if (const ncclResult_t result = nccl.enter(function); result != ncclSuccess) return result;
    if (nccl.alive.count(one.comm) == 0 || one.comm->aborted) return ncclInvalidArgument;
  }
  grouped.push_back(one);
  return depth > 0 ? ncclSuccess : run_group();
}

}  // namespace

namespace nccl_double {

void reset() {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  nccl.counts.clear();
  nccl.to_fail.clear();
  nccl.async_errors.clear();
  nccl.calls.clear();
  nccl.faults.clear();
  nccl.alive.clear();
  nccl.by_id.clear();
}
void fail(const std::string& function, int nth, ncclResult_t result) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  nccl.to_fail.push_back({function, nccl.counts[function] + nth, result});
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
std::string faults() {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  std::string all;
  for (const std::string& one : nccl.faults) all += one + "\n";
  if (!nccl.alive.empty()) all += std::to_string(nccl.alive.size()) + " communicators are left";
  return all;
}

}  // namespace nccl_double

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

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  const std::string text = "id " + std::to_string(++nccl.ids);
  std::memset(id->internal, 0, sizeof(id->internal));
  std::memcpy(id->internal, text.data(), text.size());
  return nccl.enter("ncclGetUniqueId");
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t*) {
  int device = 0;
  static_cast<void>(cudaGetDevice(&device));
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  if (const ncclResult_t result = nccl.enter("ncclCommInitRankConfig"); result != ncclSuccess) return result;
  *comm = nccl.make(rank, device);
  (*comm)->rank = rank;
  std::shared_ptr<clique>& all = nccl.by_id[std::string{id.internal}];
  if (all == nullptr) all = std::make_shared<clique>();
  all->size = static_cast<std::size_t>(size);
  all->members[rank] = *comm;
  if (all->members.size() < all->size) return ncclInProgress;
  for (auto& [of, member] : all->members) member->all = all;
  return ncclSuccess;
}

ncclResult_t ncclCommSplit(ncclComm_t parent, int color, int, ncclComm_t* made, ncclConfig_t*) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  *made = nullptr;
  if (const ncclResult_t result = nccl.enter("ncclCommSplit"); result != ncclSuccess) return result;
  clique& all = *parent->all;
  const std::size_t index = all.splittings_of[parent->rank]++;
  if (all.splittings.size() <= index) all.splittings.resize(index + 1);
  if (color != NCCL_SPLIT_NOCOLOR) *made = nccl.make(parent->world_rank, parent->device);
  auto& asked = all.splittings[index].asked;
  asked[parent->rank] = {color, *made};
  if (asked.size() < all.size) return color == NCCL_SPLIT_NOCOLOR ? ncclSuccess : ncclInProgress;
  std::map<int, std::shared_ptr<clique>> by_color;
  for (const auto& [rank, one] : asked) {
    if (one.first == NCCL_SPLIT_NOCOLOR || nccl.alive.count(one.second) == 0) continue;
    std::shared_ptr<clique>& of = by_color[one.first];
    if (of == nullptr) of = std::make_shared<clique>();
    one.second->rank = static_cast<int>(of->members.size());
    of->members[one.second->rank] = one.second;
    of->size = of->members.size();
    one.second->all = of;
  }
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  if (nccl.alive.count(comm) == 0) return ncclInvalidArgument;
  const auto found = nccl.async_errors.find(comm->world_rank);
  *state = found != nccl.async_errors.end() ? found->second : comm->all == nullptr ? ncclInProgress : ncclSuccess;
  return nccl.enter("ncclCommGetAsyncError");
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  static_cast<void>(nccl.enter("ncclCommAbort"));
  if (nccl.alive.erase(comm) == 0) nccl.faults.push_back("a communicator is aborted that is gone");
  comm->aborted = true;  // its groups may still ask: not deleted
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  static_cast<void>(nccl.enter("ncclCommDestroy"));
  if (nccl.alive.erase(comm) == 0) nccl.faults.push_back("a communicator is destroyed that is gone");
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
  ++depth;
  return nccl.enter("ncclGroupStart");
}
ncclResult_t ncclGroupEnd() {
  {
    library& nccl = library::get();
    const guard lock{nccl.mutex};
    --depth;
    if (const ncclResult_t result = nccl.enter("ncclGroupEnd"); result != ncclSuccess) {
      grouped.clear();
      return result;
    }
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
  library& nccl = library::get();
  std::shared_ptr<clique> all;
  std::shared_ptr<gathering> mine;
  {
    const guard lock{nccl.mutex};
    if (const ncclResult_t result = nccl.enter("ncclAllGather"); result != ncclSuccess) return result;
    all = comm->all;
    const std::size_t index = all->gatherings_of[comm->rank]++;
    if (all->gatherings.size() <= index) all->gatherings.push_back(std::make_shared<gathering>());
    mine = all->gatherings[index];
    if (mine->bytes != 0 && mine->bytes != count) nccl.faults.push_back("an all-gather of different sizes");
    mine->bytes = count;
    nccl.calls[comm->world_rank].push_back("all_gather " + std::to_string(count));
  }
  const auto* const source = static_cast<const std::byte*>(from);
  auto* const target = static_cast<std::byte*>(to);
  const auto step = [=, &nccl, rank = comm->rank] {
    const guard lock{nccl.mutex};
    if (nccl.alive.count(comm) == 0 || comm->aborted || mine->done) return true;
    mine->of_rank[rank] = {source, target};
    if (mine->of_rank.size() < all->size) return false;
    for (const auto& [to_rank, into] : mine->of_rank) {
      for (const auto& [from_rank, one] : mine->of_rank) {
        std::memcpy(into.second + static_cast<std::size_t>(from_rank) * count, one.first, count);
      }
    }
    mine->done = true;
    return true;
  };
  const cudaError_t code = cuda_double::enqueue(
      stream, {"an all-gather", {{source, source + count}}, {{target, target + all->size * count}}}, step);
  return code == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

}  // extern "C"
