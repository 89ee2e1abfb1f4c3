// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

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
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "device/runtime_double.hpp"

/// What the double of NCCL knows of communicators, and how their calls meet.
namespace nccl_double {

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

}  // namespace nccl_double

struct ncclComm {
  std::shared_ptr<nccl_double::clique> all;  // null: under way
  int rank = 0;
  int world_rank = 0;  // in the first communicator
  int device = 0;
  bool blocking = false;
  bool aborted = false;
  bool reclaimed = false;  // or about to be
  std::unique_ptr<nccl_double::pending_call> pending;
  std::shared_ptr<int> uses = std::make_shared<int>();  // shared by its work: on streams, and in graphs
};

namespace nccl_double {

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
  int version = NCCL_VERSION_CODE;
  std::set<int> priorities;
  std::set<int> max_ctas;

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
  [[nodiscard]] bool is_enqueuing(int world_rank) const {
    return std::any_of(alive.begin(), alive.end(),
                       [&](ncclComm_t one) { return one->world_rank == world_rank && one->pending != nullptr; });
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
  /// Returns false if it was aborted or destroyed before.
  [[nodiscard]] bool begin_reclaim(ncclComm& comm) {
    return alive.count(&comm) > 0 && !std::exchange(comm.reclaimed, true);
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

inline thread_local int depth = 0;
inline thread_local std::vector<group_call> grouped;
inline thread_local grouped_calls grouped_collectives;
inline thread_local std::vector<std::pair<const char*, ncclComm_t>> to_reclaim;

using guard = std::lock_guard<std::mutex>;

/// The second half of an abort, or of a destruction: waits for all work of the device, as what frees its memory may,
/// and for graphs that hold calls of the communicator. The object stays, since its groups may still ask.
inline void reclaim(const char* function, ncclComm_t comm) {
  constexpr double patience = 5;
  const bool idle = cuda_double::becomes_idle(
      comm->device, [&] { return comm->uses.use_count() == 1; }, patience);
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  if (!idle) {
    nccl.faults.push_back(std::string{function} + " waits for ever, for " +
                          (comm->uses.use_count() == 1 ? "other work of its device" : "calls of its communicator"));
  }
  nccl.alive.erase(comm);
  nccl.changed.notify_all();
}
inline ncclResult_t reclaim_grouped(const char* function, ncclComm_t comm) {
  if (depth > 0) {
    to_reclaim.emplace_back(function, comm);
  } else {
    reclaim(function, comm);
  }
  return ncclSuccess;
}

/// May this communicator be given a call? With the lock held.
inline ncclResult_t usable(ncclComm_t comm) {
  library& nccl = library::get();
  if (nccl.alive.count(comm) == 0 || comm->aborted) return ncclInvalidArgument;
  if (comm->all == nullptr || comm->pending != nullptr) {
    nccl.faults.push_back("a communicator is used before its last call is enqueued");
    return ncclInvalidUsage;
  }
  if (nccl.is_enqueuing(comm->world_rank)) {
    nccl.faults.push_back("a rank gives calls to a communicator while another's are not enqueued yet");
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
  std::shared_ptr<int> uses = comm->uses;
};

/// Moves what both ends have come for. Are all of the group's messages done? Then it can be run again.
inline bool meet(group_ends& group) {
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
inline bool connected(const group_ends& group) {
  return std::all_of(group.ends.begin(), group.ends.end(), [&](const group_ends::one& one) {
    return group.all->asked.count({!one.sends, one.ranks.first, one.ranks.second}) > 0;
  });
}

/// What is grouped becomes pending, as a whole. With the lock held.
inline ncclResult_t make_pending(const std::shared_ptr<grouped_calls>& calls) {
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

inline ncclResult_t run_group() {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  const auto calls = std::make_shared<grouped_calls>(std::exchange(grouped_collectives, {}));
  std::map<std::pair<ncclComm_t, cudaStream_t>, std::vector<group_call>> by_stream;
  for (const group_call& one : std::exchange(grouped, {})) by_stream[{one.comm, one.stream}].push_back(one);
  for (const auto& [where, messages] : by_stream) {
    const ncclComm_t comm = where.first;
    if (const ncclResult_t result = usable(comm); result != ncclSuccess) return result;
    auto group = std::make_shared<group_ends>(group_ends{.comm = comm, .all = comm->all, .ends = {}});
    cuda_double::accesses touched{"an NCCL group", {}, {}};
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
    nccl.priorities.insert(cuda_double::priority_of(where.second));
    calls->push_back({comm, [group] { return connected(*group); },
                      [stream = where.second, touched, group] {
                        return cuda_double::enqueue(stream, touched, [group] { return meet(*group); }) == cudaSuccess
                                   ? ncclSuccess
                                   : ncclUnhandledCudaError;
                      }});
  }
  return make_pending(calls);
}

inline ncclResult_t add_to_group(const char* function, const group_call& one) {
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
inline ncclResult_t collective(const char* function, const char* name, const void* from, std::size_t sent, void* to,
                               std::size_t bytes, std::size_t (*source)(int), ncclComm_t comm, cudaStream_t stream) {
  library& nccl = library::get();
  const guard lock{nccl.mutex};
  if (const ncclResult_t result = nccl.enter(function); result != ncclSuccess) return result;
  if (const ncclResult_t result = usable(comm); result != ncclSuccess) return result;
  const std::shared_ptr<clique> all = comm->all;
  nccl.calls[comm->world_rank].push_back(std::string{name} + " " + std::to_string(bytes));
  nccl.priorities.insert(cuda_double::priority_of(stream));
  all->asked_all.insert(comm->rank);
  const auto* const local = static_cast<const std::byte*>(from);
  auto* const target = static_cast<std::byte*>(to);
  // The meeting of this run: none yet.
  const auto now = std::make_shared<std::shared_ptr<meeting>>();
  const auto step = [=, &nccl, rank = comm->rank, what = std::string{name}, uses = comm->uses] {
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
      (*now)->of_rank[rank] = {local, target};
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
  cuda_double::accesses touched{name, {{local, local + sent}}, {{target, target + all->size * bytes}}};
  grouped_collectives.push_back({comm, [all] { return all->asked_all.size() == all->size; },
                                 [stream, touched, step] {
                                   return cuda_double::enqueue(stream, touched, step) == cudaSuccess
                                              ? ncclSuccess
                                              : ncclUnhandledCudaError;
                                 }});
  if (depth > 0) return ncclSuccess;
  return make_pending(std::make_shared<grouped_calls>(std::exchange(grouped_collectives, {})));
}

}  // namespace nccl_double
