// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "orrery/kernel/device_context.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/describe.hpp"
#include "orrery/transport/device_objects.hpp"
#include "orrery/transport/nccl_communicators.hpp"
#include "orrery/transport/nccl_order.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::nccl {

/// Each member of the communicator sends its r-th `bytes` bytes at `from` to rank r, and receives those of rank r as
/// the r-th at `to`: ncclAlltoAll, or, before NCCL 2.28, what that is made of.
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

/// One rank's end of a plan. See `transport_channel`.
///
/// Its exchanges are groups of NCCL's, and native collectives, each on the communicator and stream of its lane, in the
/// order of `world_messages`. A group is issued when the last of its exchanges is posted: it runs after what the
/// compute stream was given before, and what the compute stream is given after `await` runs after it.
///
/// In a call, the host makes one group of NCCL's for each, which a communicator that does not block enqueues from a
/// thread that it starts for that, and waits for it to be enqueued.
class channel {
 public:
  channel(std::shared_ptr<communicators> world, const program& p, std::vector<exchange_pieces> pieces)
      : plan_{std::make_unique<plan>(std::move(world), p, std::move(pieces))} {}

  void begin() { plan_->begin(); }
  void post(int e) { plan_->post(e); }
  void await(int e) { plan_->await(e); }
  void abandon(const std::string& why) {
    plan_->world->give_up("rank " + std::to_string(plan_->world->rank()) + " failed " + why);
  }

  [[nodiscard]] device_context context() const noexcept { return {plan_->world->compute()}; }

 private:
  /// One call of NCCL's.
  struct burst {
    ordered_call what;
    std::size_t number = 0;  // in the plan
    communicators::line* line = nullptr;
    cuda_event ready;
    cuda_event done;
    // Of a native call: what it sends and gets, in the order of the group's ranks; the exchanges that send to and
    // receive from each of them (-1: this rank itself), and the bytes of each.
    collective_kind kind = collective_kind::all_gather;
    device_memory sent;
    device_memory received;
    std::vector<int> to_rank;
    std::vector<int> from_rank;
    std::size_t bytes = 0;
  };

  struct plan final : watched_call {
    std::shared_ptr<communicators> world;
    program steps;
    std::vector<exchange_pieces> pieces;
    std::vector<std::unique_ptr<burst>> bursts;  // in the order in which they are issued
    struct ends {
      const burst* sent = nullptr;
      const burst* received = nullptr;
    };
    std::vector<ends> ends_of;  // each exchange
    std::size_t issued = 0;     // bursts of this call
    bool begun = false;
    int awaited = 0;  // exchanges of this call

    plan(std::shared_ptr<communicators> on, const program& p, std::vector<exchange_pieces> where)
        : world{std::move(on)}, steps{p}, pieces{std::move(where)}, ends_of(pieces.size()) {
      const auto [mine, remarks] = messages();
      std::vector<rank_messages> all;
      for (const std::string& text : world->all_gather(tell(mine))) all.push_back(hear(text));
      call_order order = world_messages{std::move(all)}.order(world->rank());
      make_lines(order);
      std::string wrong;
      try {
        for (ordered_call& one : order.calls) add(std::move(one), mine, remarks);
      } catch (const device_error& e) {
        if (order.natives.empty()) throw;  // the others hear of it by this rank's end
        wrong = e.what();
        if (wrong.rfind("orrery: ", 0) == 0) wrong.erase(0, 8);  // the sentence of all ranks begins with it
      }
      if (order.natives.empty()) return;
      // Native calls take memory, which a rank may not have.
      const agreement said{"error", wrong};
      compare_agreements(world->all_gather(said.name + '\x1f' + said.value + '\x1e'));
    }
    plan(const plan&) = delete;
    plan& operator=(const plan&) = delete;
    /// What is under way ends, or is aborted at the deadline, before its memory is gone.
    ~plan() {
      try {
        if (!world->failed()) world->synchronize(world->compute(), "for a plan's last call to end");
        for (const auto& one : bursts) {
          if (!world->failed()) world->synchronize(one->line->stream.get(), "for a plan's last exchange to end");
        }
      } catch (const std::exception&) {  // aborted: it ends
      }
      world->forget(this);
      if (!world->failed()) return;
      ignore_cuda(cudaStreamSynchronize(world->compute()));
      for (const auto& one : bursts) ignore_cuda(cudaStreamSynchronize(one->line->stream.get()));
    }

    void begin() {
      world->enter("beginning a call");
      if (begun && awaited != steps.exchanges.size()) {
        world->fail("rank " + std::to_string(world->rank()) +
                    " begins a call, but has left its last one in the middle");
      }
      begun = true;
      awaited = 0;
      issued = 0;
      if (steps.exchanges.size() > 0) world->call_begins(this);
    }
    void post(int e) {
      for (; issued < bursts.size() && bursts[issued]->what.after <= e; ++issued) issue(*bursts[issued]);
    }
    void await(int e) {
      const ends& of = ends_of[static_cast<std::size_t>(e)];
      if (of.sent != nullptr) wait_for_end(*of.sent);
      if (of.received != nullptr && of.received != of.sent) wait_for_end(*of.received);
      if (++awaited == steps.exchanges.size()) world->call_ends();
    }

    void wait_for_end(const burst& of) {
      if (of.number >= issued) {
        world->fail("rank " + std::to_string(world->rank()) + " waits " + place(of) + ", which it has not posted");
      }
      of.done.order(world->compute());
    }

    [[nodiscard]] std::string where(int e, way w) const { return describe_wait(steps, e, w); }
    /// Where the first burst waits that is not done. Not while one is issued.
    [[nodiscard]] std::string waits() const override {
      for (const auto& one : bursts) {
        const cudaError_t done = cudaEventQuery(one->done.get());
        if (done == cudaSuccess) continue;
        ignore_cuda(done);
        const cudaError_t ready = cudaEventQuery(one->ready.get());
        ignore_cuda(ready);
        if (done != cudaErrorNotReady || ready != cudaSuccess) return "";
        return place(*one);
      }
      return "";
    }
    /// "in step 3 for key shard 1 from rank 2, or for another of 5 messages".
    [[nodiscard]] std::string place(const burst& of) const {
      const std::size_t messages = of.what.sends.size() + of.what.receives.size();
      return (of.what.receives.empty() ? where(of.what.sends[0], way::sending)
                                       : where(of.what.receives[0], way::receiving)) +
             (messages > 1 ? ", or for another of " + std::to_string(messages) + " messages" : "");
    }

    void issue(burst& of) {
      const communicators::own_turn mine{*world};
      world->go_on();
      of.ready.record(world->compute());
      of.ready.order(of.line->stream.get());
      if (of.what.native >= 0) {
        issue_native(of);
      } else {
        issue_group(of);
      }
      of.done.record(of.line->stream.get());
    }

    void issue_group(const burst& of) {
      const cudaStream_t stream = of.line->stream.get();
      const ncclComm_t comm = of.line->comm.get();
      world->check(ncclGroupStart(), "ncclGroupStart", communicators::nowhere);
      ncclResult_t first = ncclSuccess;
      int failing = 0;
      way failing_way = way::sending;
      const auto keep = [&](ncclResult_t result, int e, way w) {
        if (first != ncclSuccess || result == ncclSuccess || result == ncclInProgress) return;
        first = result;
        failing = e;
        failing_way = w;
      };
      for (const int e : of.what.sends) {
        for (const piece& one : pieces[static_cast<std::size_t>(e)].sent) {
          if (one.bytes == 0) continue;
          const auto bytes = static_cast<std::size_t>(one.bytes);
          keep(ncclSend(one.data, bytes, ncclUint8, steps.exchanges[e].to, comm, stream), e, way::sending);
        }
      }
      for (const int e : of.what.receives) {
        for (const piece& one : pieces[static_cast<std::size_t>(e)].received) {
          if (one.bytes == 0) continue;
          const auto bytes = static_cast<std::size_t>(one.bytes);
          keep(ncclRecv(one.data, bytes, ncclUint8, steps.exchanges[e].from, comm, stream), e, way::receiving);
        }
      }
      const ncclResult_t ended = ncclGroupEnd();
      world->check(first, failing_way == way::sending ? "ncclSend" : "ncclRecv",
                   [&] { return where(failing, failing_way); });
      world->finish(comm, ended, "ncclGroupEnd", [&] { return place(of); });
    }

    void issue_native(const burst& of) {
      const cudaStream_t stream = of.line->stream.get();
      const ncclComm_t comm = of.line->comm.get();
      const auto copy = [&](std::byte* to, const std::byte* from, std::size_t bytes) {
        check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
      };
      if (of.kind == collective_kind::all_gather) {
        const piece& own = pieces[static_cast<std::size_t>(of.what.sends[0])].sent[0];
        world->finish(comm, ncclAllGather(own.data, of.received.data(), of.bytes, ncclUint8, comm, stream),
                      "ncclAllGather", [&] { return place(of); });
      } else {
        for (std::size_t r = 0; r < of.to_rank.size(); ++r) {
          std::byte* to = of.sent.data() + r * of.bytes;
          if (of.to_rank[r] < 0) continue;
          for (const piece& one : pieces[static_cast<std::size_t>(of.to_rank[r])].sent) {
            copy(to, one.data, static_cast<std::size_t>(one.bytes));
            to += one.bytes;
          }
        }
        const ncclResult_t result =
            all_to_all(of.sent.data(), of.received.data(), of.bytes, static_cast<int>(of.to_rank.size()), comm, stream);
        world->finish(comm, result, "ncclAlltoAll", [&] { return place(of); });
      }
      for (std::size_t r = 0; r < of.from_rank.size(); ++r) {
        const std::byte* from = of.received.data() + r * of.bytes;
        if (of.from_rank[r] < 0) continue;
        for (const piece& one : pieces[static_cast<std::size_t>(of.from_rank[r])].received) {
          copy(one.data, from, static_cast<std::size_t>(one.bytes));
          from += one.bytes;
        }
      }
    }

    /// What this rank has to say of its program, and the remark behind each native call in it.
    [[nodiscard]] std::pair<rank_messages, std::vector<collective>> messages() const {
      rank_messages mine;
      std::vector<collective> remarks;
      std::vector<int> native_of(pieces.size(), -1);
      std::map<native_call, int> alike;
      mine.steps = steps.steps.size();
      for (const collective& c : steps.collectives) {
        if (!fits_one_call(c)) continue;
        native_call one{c.kind, c.first_rank, c.ranks, c.rank_stride, steps.exchanges[c.exchanges.first].lane, 0};
        one.number = alike[one]++;
        for (int e = c.exchanges.first; e < c.exchanges.end(); ++e) {
          native_of[static_cast<std::size_t>(e)] = static_cast<int>(mine.natives.size());
        }
        mine.natives.push_back(one);
        remarks.push_back(c);
      }
      for (int e = 0; e < steps.exchanges.size(); ++e) {
        const exchange& x = steps.exchanges[e];
        const auto add_end = [&](bool sends, int peer, const std::vector<piece>& bytes) {
          std::string sizes = std::to_string(bytes.size());
          for (const piece& one : bytes) sizes += " " + std::to_string(one.bytes);
          mine.ends.push_back({sends, peer, x.lane, e, x.posted, x.complete_before,
                               native_of[static_cast<std::size_t>(e)], std::move(sizes)});
        };
        if (x.sent.count > 0) add_end(true, x.to, pieces[static_cast<std::size_t>(e)].sent);
        if (x.received.count > 0) add_end(false, x.from, pieces[static_cast<std::size_t>(e)].received);
      }
      return {std::move(mine), std::move(remarks)};
    }

    /// Makes, on all ranks in one order, the communicators that any of them needs.
    void make_lines(const call_order& order) {
      for (const int lane : order.lanes) static_cast<void>(world->lane(lane));
      std::map<std::pair<int, int>, int> mine;  // by ranks and stride: this rank's group
      for (const native_call& one : order.natives) {
        int& first = mine.emplace(std::pair{one.ranks, one.rank_stride}, -1).first->second;
        if (one.has(world->rank())) first = one.first_rank;
      }
      for (const auto& [shape, first] : mine) static_cast<void>(world->groups(shape.first, shape.second, first));
    }

    void add(ordered_call call, const rank_messages& mine, const std::vector<collective>& remarks) {
      burst& of = *bursts.emplace_back(std::make_unique<burst>());
      of.number = bursts.size() - 1;
      of.what = std::move(call);
      for (const int e : of.what.sends) ends_of[static_cast<std::size_t>(e)].sent = &of;
      for (const int e : of.what.receives) ends_of[static_cast<std::size_t>(e)].received = &of;
      if (of.what.native < 0) {
        of.line = &world->lane(of.what.lane);
        return;
      }
      const native_call& one = mine.natives[static_cast<std::size_t>(of.what.native)];
      const collective& c = remarks[static_cast<std::size_t>(of.what.native)];
      of.line = &world->groups(one.ranks, one.rank_stride, one.first_rank);
      of.kind = one.kind;
      of.bytes = static_cast<std::size_t>(size_of(pieces[static_cast<std::size_t>(c.exchanges.first)].sent));
      of.from_rank.assign(static_cast<std::size_t>(one.ranks), -1);
      of.to_rank = of.from_rank;
      const auto index_of = [&](int rank) {
        return static_cast<std::size_t>((rank - one.first_rank) / one.rank_stride);
      };
      for (int e = c.exchanges.first; e < c.exchanges.end(); ++e) {
        of.to_rank[index_of(steps.exchanges[e].to)] = e;
        of.from_rank[index_of(steps.exchanges[e].from)] = e;
      }
      const auto all = static_cast<std::int64_t>(of.bytes) * one.ranks;
      of.received = device_memory{all};
      if (of.kind != collective_kind::all_gather) of.sent = device_memory{all};
    }

    [[nodiscard]] static std::int64_t size_of(const std::vector<piece>& message) {
      std::int64_t bytes = 0;
      for (const piece& one : message) bytes += one.bytes;
      return bytes;
    }

    /// Could this remark be one call of NCCL's, as far as this rank knows? Then it exchanges as many bytes with each
    /// other member, both ways, in one step; in an all-gather it sends the same to all.
    [[nodiscard]] bool fits_one_call(const collective& c) const {
      const bool gathers = c.kind == collective_kind::all_gather;
      if (!(gathers ? world->how().native_all_gather : world->how().native_all_to_all)) return false;
      if (c.ranks < 2 || c.rank_stride < 1 || c.exchanges.count != c.ranks - 1) return false;
      const native_call group{c.kind, c.first_rank, c.ranks, c.rank_stride, 0, 0};
      const exchange& first = steps.exchanges[c.exchanges.first];
      const std::vector<piece>& sample = pieces[static_cast<std::size_t>(c.exchanges.first)].sent;
      std::set<int> to;
      std::set<int> from;
      for (int e = c.exchanges.first; e < c.exchanges.end(); ++e) {
        const exchange& x = steps.exchanges[e];
        const exchange_pieces& of = pieces[static_cast<std::size_t>(e)];
        if (x.sent.count == 0 || x.received.count == 0 || !group.has(x.to) || !group.has(x.from)) return false;
        if (!to.insert(x.to).second || !from.insert(x.from).second) return false;
        if (x.posted != first.posted || x.lane != first.lane) return false;
        if (size_of(of.sent) != size_of(sample) || size_of(of.received) != size_of(sample)) return false;
        if (gathers && (of.sent.size() != 1 || of.received.size() != 1 || of.sent[0].data != sample[0].data)) {
          return false;
        }
      }
      return group.has(steps.rank) && size_of(sample) > 0;
    }
  };

  std::unique_ptr<plan> plan_;
};

}  // namespace orrery::nccl
