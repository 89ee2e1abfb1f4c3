// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "cuda/nccl_double.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <tuple>
#include <utility>

#include <cuda_runtime_api.h>

#include "cuda/runtime_double.hpp"

namespace {

/// One end of a message that its stream has come to.
struct endpoint {
  std::byte* data;
  std::size_t bytes;
  bool done = false;
};
using endpoints = std::deque<std::shared_ptr<endpoint>>;

/// A collective that some of its members' streams have come to.
struct meeting {
  std::string name;
  std::size_t bytes = 0;
  std::map<int, std::pair<const std::byte*, std::byte*>> of_rank;  // what it sends, and where all goes
  bool done = false;
};

/// What the ranks of a communicator share.
struct clique {
  std::size_t size = 0;
  std::map<int, ncclComm_t> members;
  std::map<std::pair<int, int>, endpoints> sends, receives;  // by source and target: not met yet
  std::map<int, std::size_t> meetings_of;                    // by rank: how many so far
  std::deque<std::shared_ptr<meeting>> meetings;
  std::set<std::tuple<bool, int, int>> asked;  // ends of messages, by whether they send, source and target
  std::set<int> asked_all;                     // ranks that have called a collective
  struct splitting {
    struct one {
      int color;
      ncclComm_t child;   // to be; null: none
      ncclComm_t* where;  // it is written to when all have asked
    };
    std::map<int, one> asked;  // by rank
    bool done = false;
  };
  std::map<int, std::size_t> splittings_of;
  std::deque<splitting> splittings;
};

/// A call that returned before it was enqueued.
struct pending_call {
  std::function<bool()> connected;  // have the others come to their first call?
  std::function<ncclResult_t()> enqueue;
  std::thread::id caller;
};

}  // namespace

struct ncclComm {
  std::shared_ptr<clique> all;  // null: under way
  int rank = 0;
  int world_rank = 0;  // in the first communicator
  int device = 0;
  bool blocking = false;
  bool aborted = false;
  std::unique_ptr<pending_call> pending;
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
  std::string words;
};

struct library {
  std::mutex mutex;
  std::condition_variable changed;  // something that a blocking call waits for
  std::map<std::string, int> counts;
  std::vector<failure> to_fail;
  std::map<int, ncclResult_t> async_errors;
  std::map<int, std::vector<std::string>> calls;
  std::vector<std::string> faults;
  std::string words;  // of the last error
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
      if (one.function != function || one.nth != nth) continue;
      words = one.words;
      return one.result;
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
  /// Splittings that this communicator has asked for and others have not.
  template <class Visit>
  static void each_open(const ncclComm& comm, const Visit& visit) {
    if (comm.all == nullptr) return;
    for (clique::splitting& one : comm.all->splittings) {
      const auto found = one.asked.find(comm.rank);
      if (!one.done && found != one.asked.end()) visit(one, found);
    }
  }
  /// It is gone: what it has asked for is not made any more.
  void leave(ncclComm& comm) {
    each_open(comm, [&](clique::splitting& one, auto entry) {
      alive.erase(entry->second.child);
      one.asked.erase(entry);
    });
    comm.pending.reset();
    changed.notify_all();
  }
};

/// A call inside of a group.
struct grouped_call {
  ncclComm_t comm;
  std::function<bool()> connected;
  std::function<ncclResult_t()> enqueue;
};
using grouped_calls = std::vector<grouped_call>;

thread_local int depth = 0;
thread_local std::vector<group_call> grouped;
thread_local grouped_calls grouped_collectives;

using guard = std::lock_guard<std::mutex>;

/// May this communicator be given a call? With the lock held.
ncclResult_t usable(ncclComm_t comm) {
  library& nccl = library::get();
  if (nccl.alive.count(comm) == 0 || comm->aborted) return ncclInvalidArgument;
  if (comm->all == nullptr || comm->pending != nullptr) {
    nccl.faults.push_back("a communicator is used before its last call is enqueued");
    return ncclInvalidUsage;
  }
  return ncclSuccess;
}

/// The ends of one group on one communicator and stream.
struct group_ends {
  struct one {
    bool sends;
    std::pair<int, int> ranks;  // source and target
    std::byte* data;
    std::size_t bytes;
    std::shared_ptr<endpoint> now;  // of this run
  };
  ncclComm_t comm;
  std::shared_ptr<clique> all;
  std::vector<one> ends;
  bool started = false;
};

/// Moves what both ends have come for. Are all of the group's messages done? Then it can be run again.
bool meet(group_ends& group) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  if (nccl.alive.count(group.comm) == 0 || group.comm->aborted) return true;
  if (!std::exchange(group.started, true)) {
    for (group_ends::one& one : group.ends) {
      one.now = std::make_shared<endpoint>(endpoint{one.data, one.bytes});
      (one.sends ? group.all->sends : group.all->receives)[one.ranks].push_back(one.now);
    }
  }
  bool done = true;
  for (group_ends::one& one : group.ends) {
    endpoints& sends = group.all->sends[one.ranks];
    endpoints& receives = group.all->receives[one.ranks];
    while (!sends.empty() && !receives.empty()) {
      endpoint& from = *sends.front();
      endpoint& to = *receives.front();
      if (from.bytes != to.bytes) {
        nccl.faults.push_back("a send of " + std::to_string(from.bytes) + " bytes meets a receive of another size");
      } else {
        std::memcpy(to.data, from.data, from.bytes);
      }
      from.done = to.done = true;
      sends.pop_front();
      receives.pop_front();
    }
    done = done && one.now->done;
  }
  if (done) group.started = false;
  return done;
}

/// Have the other ranks come to all of these messages, as far as they are the first between two ranks?
bool connected(const group_ends& group) {
  return std::all_of(group.ends.begin(), group.ends.end(), [&](const group_ends::one& one) {
    return group.all->asked.count({!one.sends, one.ranks.first, one.ranks.second}) > 0;
  });
}

/// What is grouped becomes pending, as a whole. With the lock held.
ncclResult_t make_pending(const std::shared_ptr<grouped_calls>& calls) {
  for (const grouped_call& one : *calls) {
    one.comm->pending = std::make_unique<pending_call>();
    one.comm->pending->caller = std::this_thread::get_id();
    // All of a group is enqueued at once.
    one.comm->pending->connected = [calls] {
      return std::all_of(calls->begin(), calls->end(), [](const grouped_call& other) { return other.connected(); });
    };
    one.comm->pending->enqueue = one.enqueue;
  }
  return calls->empty() ? ncclSuccess : ncclInProgress;
}

ncclResult_t run_group() {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  const auto calls = std::make_shared<grouped_calls>(std::exchange(grouped_collectives, {}));
  std::map<std::pair<ncclComm_t, cudaStream_t>, std::vector<group_call>> by_stream;
  for (const group_call& one : std::exchange(grouped, {})) by_stream[{one.comm, one.stream}].push_back(one);
  for (const auto& [where, messages] : by_stream) {
    const ncclComm_t comm = where.first;
    if (const ncclResult_t result = usable(comm); result != ncclSuccess) return result;
    auto group = std::make_shared<group_ends>();
    cuda_double::accesses touched{"an NCCL group", {}, {}};
    group->comm = comm;
    group->all = comm->all;
    std::string text = "group:";
    for (const group_call& one : messages) {
      const std::pair<int, int> ranks = one.sends ? std::pair{comm->rank, one.peer} : std::pair{one.peer, comm->rank};
      group->ends.push_back({one.sends, ranks, one.data, one.bytes, nullptr});
      group->all->asked.insert({one.sends, ranks.first, ranks.second});
      (one.sends ? touched.reads : touched.writes).push_back({one.data, one.data + one.bytes});
      text += std::string{text.back() == ':' ? " " : ", "} + (one.sends ? "send " : "receive ") +
              std::to_string(one.bytes) + (one.sends ? " to " : " from ") + std::to_string(one.peer);
    }
    nccl.calls[comm->world_rank].push_back(text);
    calls->push_back({comm, [group] { return connected(*group); },
                      [stream = where.second, touched, group] {
                        return cuda_double::enqueue(stream, touched, [group] { return meet(*group); }) == cudaSuccess
                                   ? ncclSuccess
                                   : ncclUnhandledCudaError;
                      }});
  }
  return make_pending(calls);
}

ncclResult_t add_to_group(const char* function, const group_call& one) {
  {
    library& nccl = library::get();
    const guard lock{nccl.mutex};
    if (const ncclResult_t result = nccl.enter(function); result != ncclSuccess) return result;
    if (const ncclResult_t result = usable(one.comm); result != ncclSuccess) return result;
  }
  grouped.push_back(one);
  return depth > 0 ? ncclSuccess : run_group();
}

/// A collective in which rank r gets `bytes` bytes of each rank, from its `source(r)`-th ones.
ncclResult_t collective(const char* function, const char* name, const void* from, std::size_t sent, void* to,
                        std::size_t bytes, std::size_t (*source)(int), ncclComm_t comm, cudaStream_t stream) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  if (const ncclResult_t result = nccl.enter(function); result != ncclSuccess) return result;
  if (const ncclResult_t result = usable(comm); result != ncclSuccess) return result;
  const std::shared_ptr<clique> all = comm->all;
  nccl.calls[comm->world_rank].push_back(std::string{name} + " " + std::to_string(bytes));
  all->asked_all.insert(comm->rank);
  const auto* const mine = static_cast<const std::byte*>(from);
  auto* const target = static_cast<std::byte*>(to);
  // The meeting of this run: none yet.
  const auto now = std::make_shared<std::shared_ptr<meeting>>();
  const auto step = [=, &nccl, rank = comm->rank, what = std::string{name}] {
    const guard lock_now{nccl.mutex};
    if (nccl.alive.count(comm) == 0 || comm->aborted) return true;
    if (*now == nullptr) {
      const std::size_t index = all->meetings_of[rank]++;
      if (all->meetings.size() <= index) all->meetings.push_back(std::make_shared<meeting>());
      *now = all->meetings[index];
      if ((*now)->of_rank.empty()) {
        (*now)->name = what;
        (*now)->bytes = bytes;
      } else if ((*now)->name != what || (*now)->bytes != bytes) {
        nccl.faults.push_back("an " + what + " meets an " + (*now)->name + ", or one of another size");
      }
      (*now)->of_rank[rank] = {mine, target};
    }
    meeting& here = **now;
    if (!here.done) {
      if (here.of_rank.size() < all->size) return false;
      for (const auto& [to_rank, into] : here.of_rank) {
        for (const auto& [from_rank, one] : here.of_rank) {
          std::memcpy(into.second + static_cast<std::size_t>(from_rank) * bytes, one.first + source(to_rank) * bytes,
                      bytes);
        }
      }
      here.done = true;
    }
    now->reset();
    return true;
  };
  cuda_double::accesses touched{name, {{mine, mine + sent}}, {{target, target + all->size * bytes}}};
  grouped_collectives.push_back({comm, [all] { return all->asked_all.size() == all->size; },
                                 [stream, touched, step] {
                                   return cuda_double::enqueue(stream, touched, step) == cudaSuccess
                                              ? ncclSuccess
                                              : ncclUnhandledCudaError;
                                 }});
  if (depth > 0) return ncclSuccess;
  return make_pending(std::make_shared<grouped_calls>(std::exchange(grouped_collectives, {})));
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
  nccl.words.clear();
  nccl.alive.clear();
  nccl.by_id.clear();
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

ncclResult_t ncclCommSplit(ncclComm_t parent, int color, int, ncclComm_t* made, ncclConfig_t*) {
  library& nccl = library::get();
  std::unique_lock lock{nccl.mutex};
  *made = nullptr;
  if (const ncclResult_t result = nccl.enter("ncclCommSplit"); result != ncclSuccess) return result;
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
    if (nccl.alive.erase(comm) == 0) nccl.faults.push_back("a communicator is aborted that is gone");
    comm->aborted = true;  // its groups may still ask: not deleted
    nccl.leave(*comm);
  }
  cuda_double::wake();
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  static_cast<void>(nccl.enter("ncclCommDestroy"));
  if (nccl.alive.erase(comm) == 0) nccl.faults.push_back("a communicator is destroyed that is gone");
  if (comm->pending != nullptr) nccl.faults.push_back("a communicator is destroyed before its last call is enqueued");
  nccl.leave(*comm);
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
      grouped_collectives.clear();
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
