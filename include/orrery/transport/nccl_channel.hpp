// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <exception>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "orrery/kernel/device_context.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/describe.hpp"
#include "orrery/transport/device_objects.hpp"
#include "orrery/transport/nccl_communicators.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::nccl {

/// One rank's end of a plan. See `transport_channel`.
///
/// The exchanges of one step and lane are one group of NCCL's, on the lane's communicator and stream, issued when the
/// last of them is posted: it runs after what the compute stream was given before, and what the compute stream is given
/// after `await` runs after it.
class channel {
 public:
  channel(std::shared_ptr<communicators> world, const program& p, std::vector<exchange_pieces> pieces)
      : plan_{std::make_unique<plan>(std::move(world), p, std::move(pieces))} {}

  void begin() {
    plan_->world->enter("beginning a call");
    if (plan_->begun && plan_->awaited != plan_->steps.exchanges.size()) {
      plan_->world->fail("rank " + std::to_string(plan_->world->rank()) +
                         " begins a call, but has left its last one in the middle");
    }
    plan_->begun = true;
    plan_->awaited = 0;
  }
  void post(int e) {
    plan::burst& of = *plan_->burst_of[static_cast<std::size_t>(e)];
    if (of.exchanges.back() == e) plan_->issue(of);
  }
  void await(int e) {
    plan_->burst_of[static_cast<std::size_t>(e)]->done.order(plan_->world->compute());
    ++plan_->awaited;
  }
  void abandon(const std::string& why) {
    plan_->world->give_up("rank " + std::to_string(plan_->world->rank()) + " failed " + why);
  }

  [[nodiscard]] device_context context() const noexcept { return {plan_->world->compute()}; }

 private:
  struct plan {
    /// Exchanges that are one call of NCCL's.
    struct burst {
      std::vector<int> exchanges;
      communicators::line* line = nullptr;
      cuda_event ready;
      cuda_event done;
      // Of a native all-gather: its blocks in the order of the group's ranks, and each rank's exchange (-1: this
      // rank's).
      bool native = false;
      device_memory gathered;
      std::vector<int> from_rank;
    };

    std::shared_ptr<communicators> world;
    program steps;
    std::vector<exchange_pieces> pieces;
    std::vector<std::unique_ptr<burst>> bursts;
    std::vector<burst*> burst_of;  // each exchange
    bool begun = false;
    int awaited = 0;  // exchanges of this call

    plan(std::shared_ptr<communicators> on, const program& p, std::vector<exchange_pieces> where)
        : world{std::move(on)}, steps{p}, pieces{std::move(where)}, burst_of(pieces.size(), nullptr) {
      agree();
      for (int c = 0; c < steps.collectives.size(); ++c) {
        const collective& one = steps.collectives[c];
        if (gathers_alike(one)) add_native(one);
      }
      std::map<std::pair<int, int>, burst*> by_step_and_lane;
      for (int e = 0; e < steps.exchanges.size(); ++e) {
        if (burst_of[static_cast<std::size_t>(e)] != nullptr) continue;
        const exchange& x = steps.exchanges[e];
        burst*& of = by_step_and_lane[{x.posted, x.lane}];
        if (of == nullptr) {
          of = bursts.emplace_back(std::make_unique<burst>()).get();
          of->line = &world->lane(x.lane);
        }
        of->exchanges.push_back(e);
        burst_of[static_cast<std::size_t>(e)] = of;
      }
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
      if (!world->failed()) return;
      ignore_cuda(cudaStreamSynchronize(world->compute()));
      for (const auto& one : bursts) ignore_cuda(cudaStreamSynchronize(one->line->stream.get()));
    }

    [[nodiscard]] std::string where(int e, way w) const { return describe_wait(steps, e, w); }

    void issue(burst& of) {
      const cudaStream_t stream = of.line->stream.get();
      const ncclComm_t comm = of.line->comm.get();
      of.ready.record(world->compute());
      of.ready.order(stream);
      if (of.native) {
        const piece& own = pieces[static_cast<std::size_t>(of.exchanges[0])].sent[0];
        const auto bytes = static_cast<std::size_t>(own.bytes);
        world->finish(comm, ncclAllGather(own.data, of.gathered.data(), bytes, ncclUint8, comm, stream),
                      "ncclAllGather", [&] { return where(of.exchanges[0], way::receiving); });
        for (std::size_t r = 0; r < of.from_rank.size(); ++r) {
          if (of.from_rank[r] < 0) continue;
          check_cuda(cudaMemcpyAsync(pieces[static_cast<std::size_t>(of.from_rank[r])].received[0].data,
                                     of.gathered.data() + r * bytes, bytes, cudaMemcpyDeviceToDevice, stream),
                     "cudaMemcpyAsync");
        }
      } else {
        world->check(ncclGroupStart(), "ncclGroupStart", communicators::nowhere);
        ncclResult_t first = ncclSuccess;
        int failing = of.exchanges[0];
        way failing_way = way::sending;
        const auto keep = [&](ncclResult_t result, int e, way w) {
          if (first != ncclSuccess || result == ncclSuccess || result == ncclInProgress) return;
          first = result;
          failing = e;
          failing_way = w;
        };
        for (const int e : of.exchanges) {
          const exchange& x = steps.exchanges[e];
          for (const piece& one : pieces[static_cast<std::size_t>(e)].sent) {
            if (one.bytes == 0) continue;
            keep(ncclSend(one.data, static_cast<std::size_t>(one.bytes), ncclUint8, x.to, comm, stream), e,
                 way::sending);
          }
          for (const piece& one : pieces[static_cast<std::size_t>(e)].received) {
            if (one.bytes == 0) continue;
            keep(ncclRecv(one.data, static_cast<std::size_t>(one.bytes), ncclUint8, x.from, comm, stream), e,
                 way::receiving);
          }
        }
        const ncclResult_t ended = ncclGroupEnd();
        world->check(first, failing_way == way::sending ? "ncclSend" : "ncclRecv",
                     [&] { return where(failing, failing_way); });
        world->finish(comm, ended, "ncclGroupEnd", [&] {
          return where(failing, steps.exchanges[failing].received.count > 0 ? way::receiving : way::sending);
        });
      }
      of.done.record(stream);
    }

    /// Do all ranks expect what they are sent? Throws on all of them if not. Then makes, on all ranks in one order, the
    /// communicators that any of them needs.
    void agree() {
      std::ostringstream mine;
      std::set<int> lanes;
      for (int e = 0; e < steps.exchanges.size(); ++e) {
        const exchange& x = steps.exchanges[e];
        lanes.insert(x.lane);
        const auto message = [&](char kind, int peer, const std::vector<piece>& bytes) {
          mine << kind << ' ' << peer << ' ' << x.lane << ' ' << bytes.size();
          for (const piece& one : bytes) mine << ' ' << one.bytes;
          mine << '\n';
        };
        if (x.sent.count > 0) message('s', x.to, pieces[static_cast<std::size_t>(e)].sent);
        if (x.received.count > 0) message('r', x.from, pieces[static_cast<std::size_t>(e)].received);
      }
      for (const int lane : lanes) mine << "l " << lane << '\n';
      for (int c = 0; c < steps.collectives.size(); ++c) {
        const collective& one = steps.collectives[c];
        if (gathers_alike(one)) mine << "g " << one.ranks << ' ' << one.rank_stride << ' ' << one.first_rank << '\n';
      }
      const std::vector<std::string> all = world->all_gather(mine.str());

      // messages[from][to][lane]: what is sent, and what is expected, in order.
      std::map<std::tuple<int, int, int>, std::string> sent;
      std::map<std::tuple<int, int, int>, std::string> expected;
      std::set<int> all_lanes;
      std::map<std::pair<int, int>, std::set<int>> groups;
      for (int rank = 0; rank < static_cast<int>(all.size()); ++rank) {
        std::istringstream lines{all[static_cast<std::size_t>(rank)]};
        for (std::string line; std::getline(lines, line);) {
          std::istringstream words{line};
          char kind = 0;
          int a = 0;
          int b = 0;
          words >> kind >> a;
          if (kind == 'l') {
            all_lanes.insert(a);
            continue;
          }
          words >> b;
          if (kind == 'g') {
            int first = 0;
            words >> first;
            groups[{a, b}].insert(first);
            continue;
          }
          std::string sizes;
          std::getline(words, sizes);
          if (kind == 's') sent[{rank, a, b}] += sizes + ';';
          if (kind == 'r') expected[{a, rank, b}] += sizes + ';';
        }
      }
      const auto refuse_first_of = [](const auto& of, const auto& other) {
        for (const auto& [message, sizes] : of) {
          const auto found = other.find(message);
          if (found != other.end() && found->second == sizes) continue;
          throw transport_error{"orrery: rank " + std::to_string(std::get<0>(message)) + " sends to rank " +
                                std::to_string(std::get<1>(message)) +
                                " other messages than that expects: their number, their lanes or their sizes differ" +
                                world_is_usable};
        }
      };
      refuse_first_of(sent, expected);
      refuse_first_of(expected, sent);

      for (const int lane : all_lanes) static_cast<void>(world->lane(lane));
      for (const auto& [shape, firsts] : groups) {
        int mine_first = -1;
        for (const int first : firsts) {
          const int index = world->rank() - first;
          if (index >= 0 && index % shape.second == 0 && index / shape.second < shape.first) mine_first = first;
        }
        static_cast<void>(world->groups(shape.first, shape.second, mine_first));
      }
    }

    /// Is it an all-gather in which all blocks have one size, and each rank sends one piece to all others?
    [[nodiscard]] bool gathers_alike(const collective& c) const {
      if (!world->how().native_all_gather || c.kind != collective_kind::all_gather || c.ranks < 2) return false;
      if (c.exchanges.count != c.ranks - 1) return false;
      const exchange_pieces& first = pieces[static_cast<std::size_t>(c.exchanges.first)];
      if (first.sent.size() != 1 || first.sent[0].bytes == 0) return false;
      for (int e = c.exchanges.first; e < c.exchanges.end(); ++e) {
        const exchange_pieces& one = pieces[static_cast<std::size_t>(e)];
        if (one.sent.size() != 1 || one.received.size() != 1 || one.sent[0].data != first.sent[0].data ||
            one.sent[0].bytes != first.sent[0].bytes || one.received[0].bytes != first.sent[0].bytes) {
          return false;
        }
      }
      return true;
    }

    void add_native(const collective& c) {
      burst& of = *bursts.emplace_back(std::make_unique<burst>());
      of.native = true;
      of.line = &world->groups(c.ranks, c.rank_stride, c.first_rank);
      of.gathered = device_memory{pieces[static_cast<std::size_t>(c.exchanges.first)].sent[0].bytes * c.ranks};
      of.from_rank.assign(static_cast<std::size_t>(c.ranks), -1);
      for (int e = c.exchanges.first; e < c.exchanges.end(); ++e) {
        of.exchanges.push_back(e);
        burst_of[static_cast<std::size_t>(e)] = &of;
        of.from_rank[static_cast<std::size_t>((steps.exchanges[e].from - c.first_rank) / c.rank_stride)] = e;
      }
    }
  };

  std::unique_ptr<plan> plan_;
};

}  // namespace orrery::nccl
