// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <mpi.h>

#include "orrery/host/context.hpp"
#include "orrery/schedule/program.hpp"
#include "orrery/transport/detail/describe.hpp"
#include "orrery/transport/detail/peer_text.hpp"
#include "orrery/transport/mpi/collective.hpp"
#include "orrery/transport/mpi/communicator.hpp"
#include "orrery/transport/mpi/memory.hpp"
#include "orrery/transport/mpi/message.hpp"
#include "orrery/transport/mpi/wait_chain.hpp"
#include "orrery/transport/mpi_options.hpp"
#include "orrery/transport/transport.hpp"

namespace orrery::mpi {

/// One rank's end of a plan. See `transport_channel`.
///
/// Each side of each exchange is one message and one persistent request, made with the plan and started in each call.
///
/// With `collectives::native`, exchanges that are marked as a collective are one call of MPI instead, if all members of
/// its group agree: each marks it, for the same step and lane, with the same messages. If not, for example because a
/// member has nothing to exchange and so no mark, all members send their messages one by one.
class channel {
 public:
  channel(std::shared_ptr<communicator> world, const schedule::program& p, std::vector<exchange_pieces> pieces)
      : plan_{std::make_unique<plan>(std::move(world), p, std::move(pieces))} {}

  void begin() {
    plan& local = *plan_;
    local.refused = true;
    const communicator::presence here = local.world->enter("beginning a call");
    local.refused = false;
    if (local.in_call()) {
      local.world->fail("rank " + std::to_string(local.world->rank()) +
                        " begins a call, but has not finished its last one");
    }
    ++local.calls;
    local.awaited = 0;
    if (local.in_call()) local.world->begin_call();
  }
  void post(int e) {
    const communicator::presence here = plan_->world->resume();
    plan_->post(e);
  }
  void await(int e) {
    const communicator::presence here = plan_->world->resume();
    plan_->await(e);
    if (!plan_->in_call()) plan_->world->end_call();
  }
  /// Does nothing after a call that was refused, since that has not begun.
  void abandon(const std::string& why) noexcept {
    if (!plan_->refused) plan_->world->give_notice("failed ", why);
  }

  [[nodiscard]] host_context context() const noexcept {
    communicator& world = *plan_->world;
    return {world.team(), {world, [](communicator& of_rank) { of_rank.progress(); }}};
  }

 private:
  struct plan {
    static constexpr auto receiving = static_cast<std::size_t>(detail::direction::receiving);
    static constexpr auto sending = static_cast<std::size_t>(detail::direction::sending);
    struct exchange_requests {
      MPI_Request requests[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL};
      bool in_flight = false;
      native_collective* part_of = nullptr;  // not null: the exchange has no requests of its own
    };

    std::shared_ptr<communicator> world;
    schedule::program steps;
    std::vector<exchange_pieces> pieces;
    std::vector<exchange_requests> requests_of;
    std::vector<std::unique_ptr<message_type>> types;
    std::vector<std::unique_ptr<native_collective>> natives;
    int first_tag = 0;
    std::uint64_t calls = 0;
    std::size_t awaited;   // exchanges of this call
    bool refused = false;  // true if the communicator refused the last call

    plan(std::shared_ptr<communicator> on, const schedule::program& p, std::vector<exchange_pieces> where_blocks_lie)
        : world{std::move(on)},
          steps{p},
          pieces{std::move(where_blocks_lie)},
          requests_of(pieces.size()),
          awaited{requests_of.size()} {
      const agreed all = agree();
      first_tag = world->take_tags(all.lanes);
      if (all.natives_anywhere) {
        std::vector<communicator::lane_group> groups;
        for (const candidate& candidate : all.natives) groups.push_back({candidate.members, candidate.lane});
        world->make_groups(groups);
      }
      for (const candidate& candidate : all.natives) {
        native_collective& made =
            *natives.emplace_back(std::make_unique<native_collective>(*world, candidate, steps, pieces));
        for (const int e : candidate.exchanges) {
          requests_of[static_cast<std::size_t>(e)].part_of = &made;
        }
      }
      for (std::size_t i = 0; i < requests_of.size(); ++i) {
        if (requests_of[i].part_of != nullptr) continue;
        const int e = static_cast<int>(i);
        const schedule::exchange& x = steps.exchanges[e];
        if (x.received.count > 0) {
          const message_type& message = *types.emplace_back(std::make_unique<message_type>(*world, pieces[i].received));
          world->check(MPI_Recv_init(message.address(), message.count(), message.type(), x.from, first_tag + x.lane,
                                     world->get(), &requests_of[i].requests[receiving]),
                       "MPI_Recv_init", [&] { return where(e, receiving); });
        }
        if (x.sent.count > 0) {
          const message_type& message = *types.emplace_back(std::make_unique<message_type>(*world, pieces[i].sent));
          world->check(MPI_Send_init(message.address(), message.count(), message.type(), x.to, first_tag + x.lane,
                                     world->get(), &requests_of[i].requests[sending]),
                       "MPI_Send_init", [&] { return where(e, sending); });
        }
      }
    }
    plan(const plan&) = delete;
    plan& operator=(const plan&) = delete;

    /// Cancels receives that are in flight. What cannot be cancelled is left to MPI, with its memory. After
    /// MPI_Finalize, or on a thread that may not call MPI, everything is left as it is.
    ~plan() {
      if (running() && world->may_call_here()) {
        const communicator::presence here{*world, communicator::presence::on_entry::wait};
        if (in_call()) world->end_call();
        for (std::size_t i = 0; i < requests_of.size(); ++i) end(requests_of[i], pieces[i]);
        for (const auto& collective : natives) {
          if (collective->in_flight()) collective->give_up();
        }
        natives.clear();  // frees types
        types.clear();
        return;
      }
      for (std::size_t i = 0; i < requests_of.size(); ++i) {
        if (!requests_of[i].in_flight) continue;
        leave(pieces[i].received);
        leave(pieces[i].sent);
      }
      for (auto& collective : natives) collective->give_up();
      for (auto& type : types) abandoned_buffers::all().retain_forever(std::move(type));
    }

    [[nodiscard]] bool in_call() const noexcept { return awaited != requests_of.size(); }

    static void end(exchange_requests& requests, const exchange_pieces& of_exchange) noexcept {
      for (const std::size_t end : {receiving, sending}) {
        MPI_Request& request = requests.requests[end];
        if (request == MPI_REQUEST_NULL) continue;
        int done = requests.in_flight ? 0 : 1;
        if (done == 0) MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (done == 0 && end == receiving) MPI_Cancel(&request);
        const auto limit = std::chrono::steady_clock::now() + std::chrono::milliseconds{50};
        while (done == 0 && std::chrono::steady_clock::now() < limit) {
          if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
          std::this_thread::yield();
        }
        if (done == 0) leave(end == receiving ? of_exchange.received : of_exchange.sent);
        if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
      }
      if (requests.part_of == nullptr || !requests.part_of->in_flight()) return;
      leave(of_exchange.received);
      leave(of_exchange.sent);
    }

    static void leave(const std::vector<piece>& to_mpi) noexcept {
      for (const piece& part : to_mpi) {
        if (part.bytes > 0) abandoned_buffers::all().use(part.data);
      }
    }

    void post(int e) {
      exchange_requests& requests = requests_of[static_cast<std::size_t>(e)];
      requests.in_flight = true;
      if (requests.part_of != nullptr) {
        // Starts the call with the last of its exchanges: then all sent blocks are ready.
        if (e + 1 < requests.part_of->exchanges().end()) return;
        world->check(requests.part_of->start(), requests.part_of->call(), [&] { return where(e, receiving); });
        return;
      }
      for (const std::size_t end : {receiving, sending}) {
        if (requests.requests[end] == MPI_REQUEST_NULL) continue;
        world->check(MPI_Start(&requests.requests[end]), "MPI_Start", [&] { return where(e, end); });
      }
    }

    void await(int e) {
      exchange_requests& requests = requests_of[static_cast<std::size_t>(e)];
      if (requests.part_of != nullptr) {
        native_collective& all = *requests.part_of;
        world->wait(all.request(), all.call(), [&] {
          return pending_wait{describe(all.exchanges()), all.members(), all.number_of_call(first_tag, calls)};
        });
      } else {
        await_messages(e, requests);
      }
      requests.in_flight = false;
      ++awaited;
    }

    void await_messages(int e, exchange_requests& requests) {
      MPI_Status statuses[2];
      world->wait_until(
          [&] {
            int done = 0;
            const int code = MPI_Testall(2, requests.requests, &done, statuses);
            if (code == MPI_ERR_IN_STATUS) {
              for (const std::size_t end : {receiving, sending}) {
                const int of_one = statuses[end].MPI_ERROR;
                if (of_one == MPI_ERR_PENDING || requests.requests[end] == MPI_REQUEST_NULL) continue;
                world->check(of_one, "MPI_Testall", [&] { return where(e, end); });
              }
            }
            world->check(code, "MPI_Testall", [&] { return where(e, receiving); });
            return done != 0;
          },
          [&] {
            int received = 0;
            MPI_Request_get_status(requests.requests[receiving], &received, MPI_STATUS_IGNORE);
            const schedule::exchange& x = steps.exchanges[e];
            return pending_wait{where(e, received != 0 ? sending : receiving), {received != 0 ? x.to : x.from}};
          });
    }

    [[nodiscard]] std::string where(int e, std::size_t end) const {
      return detail::describe_wait(steps, e, static_cast<detail::direction>(end));
    }

    /// Describes what a collective waits for, as far as known: "in step 1 for key shard 1 from rank 1, and key shard 2
    /// from rank 2".
    [[nodiscard]] std::string describe(const schedule::range& exchanges) const {
      std::string text;
      for (const int e : exchanges) {
        const schedule::exchange& x = steps.exchanges[e];
        if (x.from == schedule::no_rank) continue;
        text += text.empty() ? "in step " + std::to_string(x.complete_before) + " for " : ", and ";
        text +=
            detail::describe_message(steps, e, detail::direction::receiving) + " from rank " + std::to_string(x.from);
      }
      return text.empty() ? where(exchanges.first, sending) : text;
    }

    struct agreed {
      int lanes;              // of all ranks
      bool natives_anywhere;  // may a rank have native collectives?
      std::vector<candidate> natives;
    };

    /// Parses the text of a rank in `agree`. Returns false if it is malformed.
    [[nodiscard]] static bool parse(const std::string& of_rank, int& lanes, std::string_view& wrong) {
      detail::peer_text read{of_rank};
      read.number(lanes, 1).skip(" ");
      while (read.at(';')) {
        read.skip(";");
        for (int i = 0; i < 5; ++i) {  // see candidate::name
          int number = 0;
          read.number(number, 0).skip(",");
        }
        read.skip(read.at('g') ? "g" : "w");
      }
      return read.skip(" ").until('\n', wrong).ended();
    }

    /// Exchanges and compares what ranks expect of each other. Throws on all ranks if one sends what its peer does not
    /// expect.
    [[nodiscard]] agreed agree() const {
      std::vector<candidate> local;
      if (world->get_options().collectives == collectives::native) local = candidates_of(steps, pieces);
      if (!world->makes_groups()) {
        std::erase_if(local, [&](const candidate& candidate) { return candidate.members.count < world->size(); });
      }
      std::vector<const candidate*> candidate_of(pieces.size(), nullptr);
      for (const candidate& candidate : local) {
        for (const int e : candidate.exchanges) {
          candidate_of[static_cast<std::size_t>(e)] = &candidate;
        }
      }

      // For each rank, two digests of all messages (FNV-1a over whole numbers): of their sizes, and of the candidates
      // that they belong to.
      const auto ranks = static_cast<std::size_t>(world->size());
      std::vector<std::uint64_t> sent(2 * ranks, 0xcbf29ce484222325);
      std::vector<std::uint64_t> expected = sent;
      const auto mix = [](std::uint64_t& digest, std::uint64_t number) { digest = (digest ^ number) * 0x100000001b3; };
      const auto add = [&](std::uint64_t* digests, const schedule::exchange& x, const std::vector<piece>& message,
                           const candidate* part_of) {
        mix(digests[0], static_cast<std::uint64_t>(x.lane));
        mix(digests[0], message.size());
        for (const piece& part : message) mix(digests[0], static_cast<std::uint64_t>(part.bytes));
        mix(digests[1], 0);
        if (part_of == nullptr) return;
        for (const char c : part_of->name()) mix(digests[1], static_cast<unsigned char>(c));
      };
      // Visits lane by lane: messages of different lanes may be posted in another order than they are expected.
      int lanes = 1;
      for (const schedule::exchange& x : steps.exchanges) lanes = (std::max)(lanes, x.lane + 1);
      for (int lane = 0; lane < lanes; ++lane) {
        for (int e = 0; e < steps.exchanges.size(); ++e) {
          const schedule::exchange& x = steps.exchanges[e];
          const auto i = static_cast<std::size_t>(e);
          if (x.lane != lane) continue;
          if (x.sent.count > 0) add(&sent[2 * static_cast<std::size_t>(x.to)], x, pieces[i].sent, candidate_of[i]);
          if (x.received.count > 0) {
            add(&expected[2 * static_cast<std::size_t>(x.from)], x, pieces[i].received, candidate_of[i]);
          }
        }
      }
      const std::vector<std::uint64_t> arriving = world->all_to_all(sent);

      // The text of this rank: its lanes, its candidates that no sender contradicts, and an error.
      std::string text = std::to_string(lanes) + " ";
      for (const candidate& candidate : local) {
        bool alike = true;
        for (int i = 0; i < candidate.members.count; ++i) {
          const auto at = 2 * static_cast<std::size_t>(candidate.members.member(i)) + 1;
          alike = alike && arriving[at] == expected[at];
        }
        if (alike) text += ";" + candidate.name() + (candidate.gathers ? "g" : "w");
      }
      text += " ";
      for (std::size_t from = 0; from < ranks; ++from) {
        if (arriving[2 * from] == expected[2 * from]) continue;
        text += "rank " + std::to_string(from) + " sends to rank " + std::to_string(world->rank()) +
                " other messages than that expects: their number, their lanes or their sizes differ";
        break;
      }

      agreed all{lanes, false, {}};
      const std::vector<std::string> of_ranks = world->gather(text + "\n");
      for (const std::string& of_rank : of_ranks) {
        int its_lanes = 1;
        std::string_view wrong;
        if (!parse(of_rank, its_lanes, wrong)) {
          world->fail("rank " + std::to_string(&of_rank - of_ranks.data()) +
                      " describes its plan by a text that is not a list of lanes and collectives; build all ranks with "
                      "one version of "
                      "this library");
        }
        if (!wrong.empty()) throw transport_error{"orrery: " + std::string{wrong} + detail::world_is_usable};
        all.lanes = (std::max)(all.lanes, its_lanes);
        all.natives_anywhere = all.natives_anywhere || of_rank.find(';') != std::string::npos;
      }
      for (candidate& candidate : local) {
        bool all_want_it = true;
        for (int i = 0; i < candidate.members.count; ++i) {
          const std::string& of_member = of_ranks[static_cast<std::size_t>(candidate.members.member(i))];
          const std::string name = ";" + candidate.name();
          const std::size_t at = of_member.find(name);
          all_want_it = all_want_it && at != std::string::npos;
          candidate.gathers = candidate.gathers && all_want_it && of_member[at + name.size()] == 'g';
        }
        if (all_want_it) all.natives.push_back(candidate);
      }
      std::sort(all.natives.begin(), all.natives.end(), [](const candidate& a, const candidate& b) {
        return std::tie(a.members.first, a.members.stride, a.members.count, a.lane, a.step) <
               std::tie(b.members.first, b.members.stride, b.members.count, b.lane, b.step);
      });
      return all;
    }
  };

  std::unique_ptr<plan> plan_;
};

}  // namespace orrery::mpi
