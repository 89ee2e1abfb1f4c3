// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "orrery/device/context.hpp"
#include "orrery/device/handles.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/nccl/call_batch.hpp"
#include "orrery/transport/nccl/communicators.hpp"
#include "orrery/transport/nccl/order.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::nccl {

/// One rank's end of a plan. See `transport_channel`.
///
/// Its exchanges are batches of sends and receives, and native collectives. Each is issued on the communicator and
/// stream of its lane, in the order of `world_messages`. A batch is issued when the last of its exchanges is posted,
/// together with all others that are complete by then. It runs after everything that is on the compute stream at that
/// time. After `await`, the compute stream waits for it.
///
/// Batches of different lanes that are issued together are one group of NCCL. The end of a group costs the host more
/// than everything in it: for nonblocking communicators, which NCCL's abort needs, it starts a thread that enqueues the
/// group (src/group.cc, ncclGroupEndInternal). A step has as many groups as the lane with the most batches has batches.
/// That is one, except for schedules in which ranks are ahead of each other. Batches of one lane stay in separate
/// groups; in one group they would wait for each other. The host does not wait for NCCL's thread. It enqueues the tile
/// of the step meanwhile, and waits only when it awaits the batch or issues the next one.
class channel {
 public:
  channel(std::shared_ptr<communicators> world, const schedule::program& p, std::vector<exchange_pieces> pieces)
      : plan_{std::make_unique<plan>(std::move(world), p, std::move(pieces))} {}

  void begin() { plan_->begin(); }
  void post(int e) { plan_->post(e); }
  void posted() { plan_->issue_posted(); }
  void await(int e) { plan_->await(e); }
  void abandon(const std::string& why) {
    plan_->world->give_up("rank " + std::to_string(plan_->world->rank()) + " failed " + why);
  }

  [[nodiscard]] device_context context() const noexcept { return {plan_->world->compute()}; }

 private:
  struct plan final : watched_call, communicators::pending_calls {
    std::shared_ptr<communicators> world;
    schedule::program steps;
    std::vector<exchange_pieces> pieces;
    std::vector<std::unique_ptr<call_batch>> batches;  // in issue order
    struct ends {
      const call_batch* sent = nullptr;
      const call_batch* received = nullptr;
    };
    std::vector<ends> ends_of;          // each exchange
    int posted = -1;                    // the last posted exchange of this call
    std::size_t issued = 0;             // batches of this call
    std::size_t submitted = 0;          // of these, submitted to NCCL
    std::size_t enqueued = 0;           // of these, known to be enqueued by NCCL
    ncclResult_t result = ncclSuccess;  // of the last group
    bool begun = false;
    int awaited = 0;  // exchanges of this call

    plan(std::shared_ptr<communicators> on, const schedule::program& p, std::vector<exchange_pieces> where)
        : world{std::move(on)}, steps{p}, pieces{std::move(where)}, ends_of(pieces.size()) {
      const auto [local, collectives] = messages();
      std::vector<rank_messages> all;
      for (const std::string& text : world->all_gather(serialize(local), {detail::collective_call::open})) {
        all.push_back(parse(text, static_cast<int>(all.size()), world->size()));
      }
      call_order order = world_messages{std::move(all)}.order(world->rank());
      make_communicators(order);
      std::string wrong;
      try {
        for (ordered_call& ordered : order.calls) add(std::move(ordered), local, collectives);
      } catch (const device_error& e) {
        if (order.natives.empty()) throw;  // the others notice when this rank leaves
        wrong = e.what();
        if (wrong.rfind("orrery: ", 0) == 0) wrong.erase(0, 8);  // all ranks add this prefix to the message
      }
      if (order.natives.empty()) return;
      // Native collectives allocate memory, which may fail on one rank.
      const detail::agreement said{"error", wrong};
      detail::compare_agreements(world->all_gather(detail::text_of({&said, 1}), {detail::collective_call::open}));
    }
    plan(const plan&) = delete;
    plan& operator=(const plan&) = delete;
    /// Waits for calls in flight, or aborts them at the deadline, before their memory is freed.
    ~plan() {
      try {
        if (!world->failed()) world->finish_pending();
        if (!world->failed()) world->synchronize(world->compute(), "for a plan's last call to end");
        for (const auto& batch : batches) {
          if (!world->failed()) world->synchronize(batch->lane->stream.get(), "for a plan's last exchange to end");
        }
      } catch (const std::exception&) {  // aborted: it ends
      }
      world->forget(this, this);
      if (!world->failed()) return;
      detail::ignore_cuda(cudaStreamSynchronize(world->compute()));
      for (const auto& batch : batches) detail::ignore_cuda(cudaStreamSynchronize(batch->lane->stream.get()));
    }

    void begin() {
      world->enter("beginning a call");
      if (begun && awaited != steps.exchanges.size()) {
        world->fail("rank " + std::to_string(world->rank()) + " begins a call, but has not finished its last one");
      }
      begun = true;
      awaited = 0;
      posted = -1;
      issued = 0;
      submitted = 0;
      enqueued = 0;
      if (!steps.exchanges.empty()) world->call_begins(this);
    }
    void post(int e) { posted = e; }
    /// Issues the batches that are complete with the exchanges posted so far.
    void issue_posted() {
      while (issued < batches.size() && batches[issued]->call.after <= posted) {
        const std::size_t first = issued;
        const auto is_new = [&](const call_batch& next) {
          return std::none_of(batches.begin() + static_cast<std::ptrdiff_t>(first),
                              batches.begin() + static_cast<std::ptrdiff_t>(issued),
                              [&](const auto& batch) { return batch->lane == next.lane; });
        };
        while (issued < batches.size() && batches[issued]->call.after <= posted && is_new(*batches[issued])) ++issued;
        issue(std::span{batches}.subspan(first, issued - first));
      }
    }
    void await(int e) {
      world->call_goes_on();
      issue_posted();
      const ends& batches_of = ends_of[static_cast<std::size_t>(e)];
      if (batches_of.sent != nullptr) wait_for_end(*batches_of.sent);
      if (batches_of.received != nullptr && batches_of.received != batches_of.sent) wait_for_end(*batches_of.received);
      if (++awaited == steps.exchanges.size()) world->call_ends();
    }

    void wait_for_end(const call_batch& batch) {
      if (batch.number >= issued) {
        world->fail("rank " + std::to_string(world->rank()) + " waits " + place(batch) + ", which it has not posted");
      }
      if (batch.number >= enqueued) world->finish_pending();
      batch.done.order(world->compute());
    }

    [[nodiscard]] std::string where(int e, detail::direction w) const { return detail::describe_wait(steps, e, w); }
    /// Describes what the first unfinished batch waits for. Not while a batch is issued.
    [[nodiscard]] std::string waits() const override {
      for (const auto& batch : batches) {
        const cudaError_t done = cudaEventQuery(batch->done.get());
        if (done == cudaSuccess) continue;
        detail::ignore_cuda(done);
        const cudaError_t ready = cudaEventQuery(batch->ready.get());
        detail::ignore_cuda(ready);
        if (done != cudaErrorNotReady || ready != cudaSuccess) return "";
        return place(*batch);
      }
      return "";
    }
    /// "in step 3 for key shard 1 from rank 2, or for another of 5 messages".
    [[nodiscard]] std::string place(const call_batch& batch) const {
      const std::size_t messages = batch.call.sends.size() + batch.call.receives.size();
      return (batch.call.receives.empty() ? where(batch.call.sends[0], detail::direction::sending)
                                          : where(batch.call.receives[0], detail::direction::receiving)) +
             (messages > 1 ? ", or for another of " + std::to_string(messages) + " messages" : "");
    }

    [[nodiscard]] std::string place(const failed_call& failed) const {
      return failed.exchange < 0 ? place(*failed.batch) : where(failed.exchange, failed.direction);
    }

    /// Issues batches of different lanes as one group.
    void issue(std::span<const std::unique_ptr<call_batch>> some) {
      const communicators::comm_guard guard{*world};
      world->go_on();
      world->finish_pending();
      world->call_goes_on();
      for (const auto& batch : some) {
        batch->ready.record(world->compute());
        batch->ready.order(batch->lane->stream.get());
        batch->pack(pieces);
      }
      world->check(ncclGroupStart(), "ncclGroupStart", communicators::nowhere);
      failed_call failed;
      for (const auto& batch : some) batch->enqueue(steps, pieces, failed);
      result = ncclGroupEnd();
      world->check(failed.result, failed.name, [&] { return place(failed); });
      submitted += some.size();
      if (result == ncclInProgress) {
        world->defer(*this);
      } else {
        finish();
      }
    }
    /// Waits until NCCL has enqueued the submitted batches, and enqueues what follows them.
    void finish() override {
      const auto some = std::span{batches}.subspan(enqueued, submitted - enqueued);
      for (const auto& batch : some) {
        world->finish(batch->lane->comm.get(), result, "ncclGroupEnd", [&] { return place(*batch); });
      }
      for (const auto& batch : some) {
        batch->unpack(pieces);
        batch->done.record(batch->lane->stream.get());
      }
      enqueued = submitted;
    }

    /// Returns this rank's messages, and the marked collective behind each native call.
    [[nodiscard]] std::pair<rank_messages, std::vector<schedule::collective>> messages() const {
      rank_messages local;
      std::vector<schedule::collective> collectives;
      std::vector<int> native_of(pieces.size(), -1);
      std::map<native_call, int> alike;
      local.steps = steps.steps.size();
      for (const schedule::collective& c : steps.collectives) {
        if (!fits_one_call(c)) continue;
        native_call native{c.kind, c.first_rank, c.ranks, c.rank_stride, steps.exchanges_of(c)[0].lane, 0};
        native.number = alike[native]++;
        for (const int e : c.exchanges) {
          native_of[static_cast<std::size_t>(e)] = static_cast<int>(local.natives.size());
        }
        local.natives.push_back(native);
        collectives.push_back(c);
      }
      for (int e = 0; e < steps.exchanges.size(); ++e) {
        const schedule::exchange& x = steps.exchanges[e];
        const auto add_end = [&](bool sends, int peer, const std::vector<piece>& bytes) {
          std::string sizes = std::to_string(bytes.size());
          for (const piece& part : bytes) sizes += " " + std::to_string(part.bytes);
          local.ends.push_back({sends, peer, x.lane, e, x.posted, x.complete_before,
                                native_of[static_cast<std::size_t>(e)], std::move(sizes)});
        };
        if (x.sent.count > 0) add_end(true, x.to, pieces[static_cast<std::size_t>(e)].sent);
        if (x.received.count > 0) add_end(false, x.from, pieces[static_cast<std::size_t>(e)].received);
      }
      return {std::move(local), std::move(collectives)};
    }

    /// Makes the communicators that any rank needs, on all ranks in one order.
    void make_communicators(const call_order& order) {
      for (const int lane : order.lanes) static_cast<void>(world->lane(lane));
      std::map<std::pair<int, int>, int> local;  // by number of ranks and stride: the first rank of this rank's group
      for (const native_call& native : order.natives) {
        int& first = local.emplace(std::pair{native.ranks, native.rank_stride}, -1).first->second;
        if (native.has(world->rank())) first = native.first_rank;
      }
      for (const auto& [shape, first] : local) static_cast<void>(world->groups(shape.first, shape.second, first));
    }

    void add(ordered_call call, const rank_messages& local, const std::vector<schedule::collective>& collectives) {
      call_batch& batch = *batches.emplace_back(std::make_unique<call_batch>());
      batch.number = batches.size() - 1;
      batch.call = std::move(call);
      for (const int e : batch.call.sends) ends_of[static_cast<std::size_t>(e)].sent = &batch;
      for (const int e : batch.call.receives) ends_of[static_cast<std::size_t>(e)].received = &batch;
      if (batch.call.native < 0) {
        batch.lane = &world->lane(batch.call.lane);
        return;
      }
      const native_call& native = local.natives[static_cast<std::size_t>(batch.call.native)];
      const schedule::collective& c = collectives[static_cast<std::size_t>(batch.call.native)];
      batch.lane = &world->groups(native.ranks, native.rank_stride, native.first_rank);
      batch.kind = native.kind;
      batch.bytes = static_cast<std::size_t>(size_of(pieces[static_cast<std::size_t>(c.exchanges.first)].sent));
      batch.from_rank.assign(static_cast<std::size_t>(native.ranks), -1);
      batch.to_rank = batch.from_rank;
      const auto index_of = [&](int rank) {
        return static_cast<std::size_t>((rank - native.first_rank) / native.rank_stride);
      };
      for (const int e : c.exchanges) {
        batch.to_rank[index_of(steps.exchanges[e].to)] = e;
        batch.from_rank[index_of(steps.exchanges[e].from)] = e;
      }
      const auto all = static_cast<std::int64_t>(batch.bytes) * native.ranks;
      batch.received = detail::device_memory{all};
      if (batch.kind != schedule::collective_kind::all_gather) batch.sent = detail::device_memory{all};
    }

    [[nodiscard]] static std::int64_t size_of(const std::vector<piece>& message) {
      std::int64_t bytes = 0;
      for (const piece& part : message) bytes += part.bytes;
      return bytes;
    }

    /// Returns true if this marked collective can be one call of NCCL, as far as this rank knows: if the rank exchanges
    /// the same number of bytes with each other member, both ways, in one step. In an all-gather it must also send the
    /// same block to all.
    [[nodiscard]] bool fits_one_call(const schedule::collective& c) const {
      const bool gathers = c.kind == schedule::collective_kind::all_gather;
      if (!(gathers ? world->get_options().native_all_gather : world->get_options().native_all_to_all)) return false;
      if (c.ranks < 2 || c.rank_stride < 1 || c.exchanges.count != c.ranks - 1) return false;
      const native_call group{c.kind, c.first_rank, c.ranks, c.rank_stride, 0, 0};
      const schedule::exchange& first = steps.exchanges_of(c)[0];
      const std::vector<piece>& sample = pieces[static_cast<std::size_t>(c.exchanges.first)].sent;
      std::set<int> to;
      std::set<int> from;
      for (const int e : c.exchanges) {
        const schedule::exchange& x = steps.exchanges[e];
        const exchange_pieces& memory = pieces[static_cast<std::size_t>(e)];
        if (x.sent.count == 0 || x.received.count == 0 || !group.has(x.to) || !group.has(x.from)) return false;
        if (!to.insert(x.to).second || !from.insert(x.from).second) return false;
        if (x.posted != first.posted || x.lane != first.lane) return false;
        if (size_of(memory.sent) != size_of(sample) || size_of(memory.received) != size_of(sample)) return false;
        if (gathers &&
            (memory.sent.size() != 1 || memory.received.size() != 1 || memory.sent[0].data != sample[0].data)) {
          return false;
        }
      }
      return group.has(steps.rank) && size_of(sample) > 0;
    }
  };

  std::unique_ptr<plan> plan_;
};

}  // namespace orrery::nccl
