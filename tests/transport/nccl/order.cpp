// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The order in which ranks issue their messages to NCCL: whatever a schedule may do, it ends by NCCL's rules, too.
#include "orrery/transport/nccl/order.hpp"

#include <algorithm>
#include <cstddef>
#include <map>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "device/messages.hpp"

namespace {

using cuda_test::message_of_exception;
using namespace orrery::nccl;
using ordered = std::vector<std::vector<ordered_call>>;  // of each rank

/// Ends of messages as ranks post them: exchanges of one end each.
struct world_builder {
  std::vector<rank_messages> messages_of_rank;

  world_builder(int ranks, int steps) : messages_of_rank(static_cast<std::size_t>(ranks)) {
    for (rank_messages& one : messages_of_rank) one.steps = steps;
  }
  void end(int rank, bool sends, int peer, int posted, int complete_before, int lane = 0) {
    auto& ends = messages_of_rank[static_cast<std::size_t>(rank)].ends;
    ends.push_back({sends, peer, lane, static_cast<int>(ends.size()), posted, complete_before, -1, "1 8"});
  }
  /// Both ways, posted by a and b in these steps. To be called in the order of each rank's steps.
  void both(int a, int a_posted, int b, int b_posted, int complete_before, int lane = 0) {
    for (const bool sends : {true, false}) {
      end(a, sends, b, a_posted, complete_before, lane);
      end(b, !sends, a, b_posted, complete_before, lane);
    }
  }
  [[nodiscard]] ordered order() const {
    ordered all;
    for (std::size_t rank = 0; rank < messages_of_rank.size(); ++rank) {
      all.push_back(world_messages{messages_of_rank}.order(static_cast<int>(rank)).calls);
    }
    return all;
  }
  /// The exchanges of each step and lane in one group, in the order of the program.
  [[nodiscard]] ordered as_written() const {
    ordered all(messages_of_rank.size());
    for (std::size_t rank = 0; rank < messages_of_rank.size(); ++rank) {
      std::map<std::pair<int, int>, ordered_call> calls;
      for (const message_end& one : messages_of_rank[rank].ends) {
        ordered_call& call = calls[{one.posted, one.lane}];
        call.lane = one.lane;
        call.after = one.exchange;
        (one.sends ? call.sends : call.receives).push_back(one.exchange);
      }
      for (auto& [where, call] : calls) all[rank].push_back(std::move(call));
    }
    return all;
  }
};

/// Plays a world by NCCL's rules.
class player {
 public:
  player(const std::vector<rank_messages>& messages_of_rank, const ordered& calls)
      : of_ranks_{messages_of_rank}, calls_{calls} {
    std::map<std::tuple<bool, int, int, int>, std::vector<std::pair<std::size_t, std::size_t>>> met;
    for (std::size_t rank = 0; rank < calls.size(); ++rank) {
      call_of_.emplace_back(messages_of_rank[rank].ends.size(), calls[rank].size());
      for (std::size_t c = 0; c < calls[rank].size(); ++c) {
        for (const auto* side : {&calls[rank][c].sends, &calls[rank][c].receives}) {
          for (const int e : *side) {
            const message_end& one = messages_of_rank[rank].ends[static_cast<std::size_t>(e)];
            call_of_[rank][static_cast<std::size_t>(e)] = c;
            const int me = static_cast<int>(rank);
            met[{one.sends, one.sends ? me : one.peer, one.sends ? one.peer : me, one.lane}].emplace_back(rank, c);
          }
        }
      }
      peers_.emplace_back(calls[rank].size());
    }
    for (const auto& [way, sends] : met) {
      if (!std::get<0>(way)) continue;
      const auto& receives = met[{false, std::get<1>(way), std::get<2>(way), std::get<3>(way)}];
      REQUIRE(sends.size() == receives.size());
      for (std::size_t k = 0; k < sends.size(); ++k) {
        peers_[sends[k].first][sends[k].second].insert(receives[k]);
        peers_[receives[k].first][receives[k].second].insert(sends[k]);
      }
    }
  }

  /// Are all ends issued, each once, and before they are awaited?
  [[nodiscard]] bool complete() const {
    for (std::size_t rank = 0; rank < of_ranks_.size(); ++rank) {
      int after = 0;
      for (const ordered_call& call : calls_[rank]) {
        if (call.after < after) return false;
        after = call.after;
      }
      for (std::size_t e = 0; e < of_ranks_[rank].ends.size(); ++e) {
        if (call_of_[rank][e] == calls_[rank].size()) return false;
        const ordered_call& call = calls_[rank][call_of_[rank][e]];
        const int issued = of_ranks_[rank].ends[static_cast<std::size_t>(call.after)].posted;
        if (issued < of_ranks_[rank].ends[e].posted || issued >= of_ranks_[rank].ends[e].complete_before) return false;
      }
    }
    return true;
  }
  /// Does the host of every rank get through, if each call waits for the hosts of its peers to come to theirs?
  [[nodiscard]] bool hosts_end() const {
    std::vector<std::size_t> at(calls_.size(), 0);
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t rank = 0; rank < calls_.size(); ++rank) {
        if (at[rank] == calls_[rank].size()) continue;
        const auto& peers = peers_[rank][at[rank]];
        if (!std::all_of(peers.begin(), peers.end(), [&](const auto& p) { return at[p.first] >= p.second; })) continue;
        ++at[rank];
        moved = true;
      }
    }
    for (std::size_t rank = 0; rank < calls_.size(); ++rank) {
      if (at[rank] < calls_[rank].size()) return false;
    }
    return true;
  }
  /// Does every stream? A call begins after all of its lane before it, and what the compute stream has awaited before;
  /// it ends when all calls that it meets have begun.
  [[nodiscard]] bool devices_end() const {
    std::vector<std::vector<bool>> begun, ended;
    for (const auto& of : calls_) {
      begun.emplace_back(of.size(), false);
      ended.emplace_back(of.size(), false);
    }
    const auto may_begin = [&](std::size_t rank, std::size_t c) {
      const ordered_call& call = calls_[rank][c];
      for (std::size_t before = 0; before < c; ++before) {
        if (calls_[rank][before].lane == call.lane && !ended[rank][before]) return false;
      }
      const int step = of_ranks_[rank].ends[static_cast<std::size_t>(call.after)].posted;
      for (std::size_t e = 0; e < of_ranks_[rank].ends.size(); ++e) {
        if (of_ranks_[rank].ends[e].complete_before <= step && !ended[rank][call_of_[rank][e]]) return false;
      }
      return true;
    };
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t rank = 0; rank < calls_.size(); ++rank) {
        for (std::size_t c = 0; c < calls_[rank].size(); ++c) {
          if (!begun[rank][c] && may_begin(rank, c)) moved = begun[rank][c] = true;
          if (!begun[rank][c] || ended[rank][c]) continue;
          const auto& peers = peers_[rank][c];
          if (std::all_of(peers.begin(), peers.end(), [&](const auto& p) { return begun[p.first][p.second]; })) {
            moved = ended[rank][c] = true;
          }
        }
      }
    }
    return std::all_of(ended.begin(), ended.end(),
                       [](const std::vector<bool>& of) { return std::find(of.begin(), of.end(), false) == of.end(); });
  }

 private:
  const std::vector<rank_messages>& of_ranks_;
  const ordered& calls_;
  std::vector<std::vector<std::size_t>> call_of_;                                  // of each rank's ends
  std::vector<std::vector<std::set<std::pair<std::size_t, std::size_t>>>> peers_;  // of each call
};

/// Does a schedule end by its own rules: a message is complete when both ends are posted?
bool schedule_ends(const std::vector<rank_messages>& messages_of_rank) {
  std::map<std::tuple<int, int, int>, std::pair<std::vector<int>, std::vector<int>>> posted;
  std::vector<std::vector<std::pair<std::tuple<int, int, int>, std::size_t>>> message(messages_of_rank.size());
  for (std::size_t rank = 0; rank < messages_of_rank.size(); ++rank) {
    for (const message_end& one : messages_of_rank[rank].ends) {
      const int me = static_cast<int>(rank);
      const auto pair = one.sends ? std::tuple{me, one.peer, one.lane} : std::tuple{one.peer, me, one.lane};
      auto& of = one.sends ? posted[pair].first : posted[pair].second;
      message[rank].emplace_back(pair, of.size());
      of.push_back(one.posted);
    }
  }
  std::vector<int> reached(messages_of_rank.size(), 0);
  for (bool moved = true; moved;) {
    moved = false;
    for (std::size_t rank = 0; rank < messages_of_rank.size(); ++rank) {
      while (reached[rank] < messages_of_rank[rank].steps) {
        bool free = true;
        for (std::size_t e = 0; e < messages_of_rank[rank].ends.size(); ++e) {
          if (messages_of_rank[rank].ends[e].complete_before != reached[rank] + 1) continue;
          const auto& [pair, k] = message[rank][e];
          free = free && posted[pair].first[k] <= reached[static_cast<std::size_t>(std::get<0>(pair))] &&
                 posted[pair].second[k] <= reached[static_cast<std::size_t>(std::get<1>(pair))];
        }
        if (!free) break;
        ++reached[rank];
        moved = true;
      }
    }
  }
  for (std::size_t rank = 0; rank < messages_of_rank.size(); ++rank) {
    if (reached[rank] < messages_of_rank[rank].steps) return false;
  }
  return true;
}

/// Some messages between some ranks, posted whenever.
world_builder random_world(std::minstd_rand& random) {
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const int ranks = 2 + below(4);
  const int steps = 2 + below(6);
  struct drawn {
    bool sends;
    int peer, lane, posted, complete_before;
    unsigned among;  // those of a step
  };
  std::vector<std::vector<drawn>> of(static_cast<std::size_t>(ranks));
  for (int from = 0; from < ranks; ++from) {
    for (int to = 0; to < ranks; ++to) {
      for (int lane = 0; from != to && lane < 2; ++lane) {
        std::vector<int> sent, received;
        for (int k = below(3); k > 0; --k) {
          sent.push_back(below(steps));
          // Seldom far apart: such worlds hardly ever end.
          received.push_back((std::min)(steps - 1, (std::max)(0, sent.back() + below(4) - 1)));
        }
        std::sort(sent.begin(), sent.end());
        std::sort(received.begin(), received.end());
        const auto add = [&](int rank, bool sends, int peer, const std::vector<int>& posted) {
          const unsigned among = static_cast<unsigned>(random());
          for (const int step : posted) {
            const int before = (std::min)(steps, step + 1 + below(4));
            of[static_cast<std::size_t>(rank)].push_back({sends, peer, lane, step, before, among});
          }
        };
        add(from, true, to, sent);
        add(to, false, from, received);
      }
    }
  }
  world_builder world{ranks, steps};
  for (int rank = 0; rank < ranks; ++rank) {
    auto& local = of[static_cast<std::size_t>(rank)];
    std::stable_sort(local.begin(), local.end(), [](const drawn& a, const drawn& b) {
      return std::tie(a.posted, a.among) < std::tie(b.posted, b.among);
    });
    for (const drawn& one : local) {
      world.end(rank, one.sends, one.peer, one.posted, one.complete_before, one.lane);
    }
  }
  return world;
}

}  // namespace

TEST_CASE("three ranks that exchange in pairs, each first with the next one") {
  world_builder world{3, 2};
  world.both(0, 0, 1, 1, 2);
  world.both(1, 0, 2, 1, 2);
  world.both(2, 0, 0, 1, 2);
  // Each rank's exchanges of step 0 come first.
  for (rank_messages& one : world.messages_of_rank) {
    std::stable_sort(one.ends.begin(), one.ends.end(),
                     [](const message_end& a, const message_end& b) { return a.posted < b.posted; });
    for (std::size_t e = 0; e < one.ends.size(); ++e) one.ends[e].exchange = static_cast<int>(e);
  }
  REQUIRE(schedule_ends(world.messages_of_rank));
  CHECK_FALSE(player{world.messages_of_rank, world.as_written()}.devices_end());
  const ordered calls = world.order();
  const player played{world.messages_of_rank, calls};
  CHECK(played.complete());
  CHECK(played.hosts_end());
  CHECK(played.devices_end());
  for (const auto& of : calls) CHECK(of.size() == 1);  // all meet in step 1
}

TEST_CASE("if both ends of all messages are posted in one step, calls are ordered by step") {
  world_builder world{4, 3};
  for (int step = 0; step < 3; ++step) {
    for (int rank = 0; rank < 4; ++rank) {
      world.end(rank, true, (rank + 1) % 4, step, 3, step % 2);
      world.end(rank, false, (rank + 3) % 4, step, 3, step % 2);
    }
  }
  for (const auto& of : world.order()) {
    REQUIRE(of.size() == 3);
    for (int step = 0; step < 3; ++step) {
      const ordered_call& call = of[static_cast<std::size_t>(step)];
      CHECK(call.lane == step % 2);
      CHECK(call.sends == std::vector{2 * step});
      CHECK(call.receives == std::vector{2 * step + 1});
      CHECK(call.after == 2 * step + 1);
    }
  }
}

TEST_CASE("every schedule that ends by its own rules also ends by those of NCCL") {
  std::minstd_rand random{7};
  int end = 0;
  int would_not = 0;
  for (int i = 0; i < 2000; ++i) {
    const world_builder world = random_world(random);
    INFO("world ", i);
    if (!schedule_ends(world.messages_of_rank)) {
      CHECK(message_of_exception([&] { static_cast<void>(world.order()); }).find("would wait for ever") !=
            std::string::npos);
      continue;
    }
    ++end;
    const ordered as_written = world.as_written();
    const player naive{world.messages_of_rank, as_written};
    would_not += naive.hosts_end() && naive.devices_end() ? 0 : 1;
    const ordered calls = world.order();
    const player played{world.messages_of_rank, calls};
    CHECK(played.complete());
    CHECK(played.hosts_end());
    CHECK(played.devices_end());
  }
  CHECK(end > 1000);
  CHECK(would_not > 1000);  // as written
}

TEST_CASE("messages survive serialize and parse") {
  rank_messages local;
  local.steps = 4;
  local.natives.push_back({orrery::schedule::collective_kind::all_to_all, 1, 3, 2, 5, 1});
  local.ends.push_back({true, 2, 5, 0, 1, 3, 0, "2 16 8"});
  local.ends.push_back({false, 3, 5, 0, 1, 3, -1, "0"});
  const rank_messages parsed = parse(serialize(local), 0, 6);
  CHECK(parsed.steps == 4);
  REQUIRE(parsed.natives.size() == 1);
  CHECK(parsed.natives[0] == local.natives[0]);
  REQUIRE(parsed.ends.size() == 2);
  CHECK(parsed.ends[0].sizes == "2 16 8");
  CHECK(parsed.ends[1].sizes == "0");
  CHECK(serialize(parsed) == serialize(local));
}

TEST_CASE("parse refuses texts that are not lists of messages") {
  const auto refused = [](const std::string& text) {
    return message_of_exception([&] {
             static_cast<void>(parse(text, 3, 6));
           }).find("orrery: rank 3 gives a text that is not a list of a plan's messages") == 0;
  };
  const std::string good = "4\nn 1 1 3 2 5 1\ns 2 5 0 1 3 0 2 16 8\nr 3 5 0 1 3 -1 0\n";
  CHECK_FALSE(refused(good));
  CHECK(serialize(parse(good, 3, 6)) == good);
  for (const char* text : {"", "hello", "\n", "-1\n", "4", "4\n\n", "4\nx 1 1 3 2 5 1\n", "9999999999\n",
                           "4\nn 3 1 3 2 5 1\n", "4\nn 1 6 3 2 5 1\n", "4\nn 1 1 7 2 5 1\n", "4\nn 1 1 3 0 5 1\n",
                           "4\ns 6 5 0 1 3 -1 2 16 8\n", "4\ns -1 5 0 1 3 -1 2 16 8\n", "4\ns 2 5 0 -1 3 -1 2 16 8\n",
                           "4\ns 2 5 0 1 3 0 2 16 8\n", "4\ns 2 5 0 1 3 -2 2 16 8\n", "4\ns 2 -5 0 1 3 -1 2 16 8\n"}) {
    INFO("text: ", std::string{text});
    CHECK(refused(text));
  }
  for (std::size_t length = 0; length < good.size(); ++length) {
    const std::string cut = good.substr(0, length);
    CHECK((refused(cut) || cut.back() == '\n'));
  }
  // Changed anywhere, it is refused, or is one that would be written like this.
  std::minstd_rand random{5};
  for (int i = 0; i < 5000; ++i) {
    std::string changed = good;
    for (int changes = 0; changes < 2; ++changes) changed[random() % changed.size()] = "0139 -nsr\n"[random() % 10];
    if (!refused(changed)) CHECK(serialize(parse(changed, 3, 6)) == changed);
  }
}

TEST_CASE("programs that are not proven are refused") {
  world_builder crossed{2, 2};  // each waits for what the other posts afterwards
  crossed.end(0, false, 1, 0, 1);
  crossed.end(0, true, 1, 1, 2);
  crossed.end(1, false, 0, 0, 1);
  crossed.end(1, true, 0, 1, 2);
  CHECK(message_of_exception([&] { static_cast<void>(crossed.order()); }) ==
        "orrery: rank 0 would wait for ever in step 1: the programs are not proven; let orrery::verify name what is "
        "wrong; this world can still be used");
  world_builder alone{2, 1};
  alone.end(1, true, 0, 0, 1);
  CHECK(message_of_exception([&] {
          static_cast<void>(alone.order());
        }).find("rank 1 sends to rank 0 other messages than that expects") != std::string::npos);
}

TEST_CASE("a native call is one that all its members name, among themselves, in groups that do not overlap") {
  // Three ranks, each of which sends its block to both others.
  const auto gathering = [](int ranks, int first, int last) {
    world_builder world{ranks, 1};
    const int members = last - first + 1;
    for (int rank = first; rank <= last; ++rank) {
      rank_messages& local = world.messages_of_rank[static_cast<std::size_t>(rank)];
      local.natives.push_back({orrery::schedule::collective_kind::all_gather, first, members, 1, 0, 0});
      for (int peer = first; peer <= last; ++peer) {
        if (peer == rank) continue;
        world.end(rank, true, peer, 0, 1);
        world.end(rank, false, peer, 0, 1);
      }
      for (message_end& one : local.ends) one.native = 0;
    }
    return world;
  };
  world_builder all = gathering(3, 0, 2);
  for (const auto& of : all.order()) {
    REQUIRE(of.size() == 1);
    CHECK(of[0].native == 0);
  }
  SUBCASE("one of them does not name it") {
    all.messages_of_rank[1].natives.clear();
    for (message_end& one : all.messages_of_rank[1].ends) one.native = -1;
    for (const auto& of : all.order()) {
      REQUIRE(of.size() == 1);
      CHECK(of[0].native == -1);
    }
  }
  SUBCASE("one of its messages is not part of it on the other end") {
    all.messages_of_rank[1].ends[0].native = -1;
    for (const auto& of : all.order()) CHECK(of[0].native == -1);
  }
  SUBCASE("a group that overlaps with another one") {
    world_builder two = gathering(3, 0, 1);
    const world_builder other = gathering(3, 1, 2);
    for (std::size_t rank = 0; rank < 3; ++rank) {
      for (message_end one : other.messages_of_rank[rank].ends) {
        one.exchange += static_cast<int>(two.messages_of_rank[rank].ends.size());
        one.native += static_cast<int>(two.messages_of_rank[rank].natives.size());
        two.messages_of_rank[rank].ends.push_back(one);
      }
      const auto& more = other.messages_of_rank[rank].natives;
      two.messages_of_rank[rank].natives.insert(two.messages_of_rank[rank].natives.end(), more.begin(), more.end());
    }
    for (std::size_t rank = 0; rank < 3; ++rank) {
      int number = 0;
      for (message_end& one : two.messages_of_rank[rank].ends) one.exchange = number++;
    }
    for (const auto& of : two.order()) {
      for (const ordered_call& call : of) CHECK(call.native == -1);
    }
  }
}
