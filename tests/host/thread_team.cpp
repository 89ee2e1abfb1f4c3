// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The threads of a rank: each item once, in order where it matters, on as many threads as were asked for.
#include "orrery/host/thread_team.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention/tile.hpp"
#include "orrery/host/context.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/mask/causal.hpp"

#include "kernel/problem.hpp"
#include "support/oracle.hpp"

namespace {

using orrery::thread_team;

template <class Call>
std::string what(Call&& call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "nothing";
}

}  // namespace

TEST_CASE("a team has as many threads as it was asked for, and at least the caller") {
  for (const int threads : {1, 2, 3}) CHECK(thread_team{threads}.threads() == threads);
  CHECK(orrery::host_context{}.threads() == 1);
  for (const int threads : {0, -4}) {
    CHECK_THROWS_AS(thread_team{threads}, std::invalid_argument);
    CHECK(what([&] { thread_team{threads}; }) ==
          "orrery: thread_team: threads is " + std::to_string(threads) + ", expected at least 1");
  }
}

TEST_CASE("each item is done once, in every call") {
  for (const int threads : {1, 2, 5}) {
    thread_team team{threads};
    std::vector<int> done(1000);  // no atomics: a thread sanitizer sees an item that is done twice
    for (int call = 0; call < 200; ++call) {
      const std::int64_t items = call * 37 % 1000;
      team.run(items, [&](std::int64_t item, int thread) {
        if (thread < 0 || thread >= threads) throw std::logic_error{"thread"};
        ++done[static_cast<std::size_t>(item)];
      });
    }
    std::vector<int> expected(1000);
    for (int call = 0; call < 200; ++call) {
      for (int item = 0; item < call * 37 % 1000; ++item) ++expected[static_cast<std::size_t>(item)];
    }
    CHECK(done == expected);
  }
}

namespace {

/// Where threads wait for each other. Bounded, so that one who does not come fails a test and does not hang it.
class meeting {
 public:
  /// Returns when so many have come; false if they do not.
  [[nodiscard]] bool come(int expected) {
    std::unique_lock lock{mutex_};
    ++here_;
    all_here_.notify_all();
    return all_here_.wait_for(lock, std::chrono::seconds{30}, [&] { return here_ >= expected; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  int here_ = 0;
};

}  // namespace

TEST_CASE("all threads can work at the same time, and as many as there are items") {
  for (const int threads : {3, 5}) {
    for (int items = 2; items <= threads; ++items) {
      INFO(items, " items on ", threads, " threads");
      thread_team team{threads};
      for (int call = 0; call < 3; ++call) {
        for (int i = 0; i < 20'000; ++i) std::this_thread::yield();  // helpers that sleep have to be woken
        meeting place;
        std::atomic<int> met{0};
        team.run(items, [&](std::int64_t, int) { met += place.come(items); });
        REQUIRE(met.load() == items);
      }
    }
  }
}

TEST_CASE("staged items pass each stage in their order") {
  for (const int threads : {1, 2, 3, 7}) {
    thread_team team{threads};
    for (int call = 0; call < 20; ++call) {
      constexpr std::int64_t items = 40;
      std::vector<std::vector<std::int64_t>> places(11);
      team.run_staged(items, [&](std::int64_t item, int, const thread_team::stage_order& order) {
        // Items that skip the last places end no earlier than those before them.
        const std::int64_t stages = item % 3 == 0 ? 11 : 4;
        for (std::int64_t stage = 0; stage < stages; ++stage) {
          order.enter(stage);
          places[static_cast<std::size_t>(stage)].push_back(item);
          order.leave(stage);
        }
      });
      for (std::size_t stage = 0; stage < places.size(); ++stage) {
        std::vector<std::int64_t> expected;
        for (std::int64_t item = 0; item < items; ++item) {
          if (item % 3 == 0 || stage < 4) expected.push_back(item);
        }
        CHECK(places[stage] == expected);
      }
    }
  }
}

TEST_CASE("an item waits at a stage until the one before it has left") {
  thread_team team{2};
  for (int call = 0; call < 3; ++call) {
    meeting place;
    std::atomic<bool> is_left{false}, was_early{false};
    team.run_staged(2, [&](std::int64_t item, int, const thread_team::stage_order& order) {
      if (item == 0) order.enter(0);
      REQUIRE(place.come(2));
      if (item == 0) {
        for (int i = 0; i < 20'000 && !was_early.load(); ++i) std::this_thread::yield();  // time to come early
        is_left = true;
        order.leave(0);
      } else {
        order.enter(0);
        was_early = !is_left.load();
      }
    });
    REQUIRE_FALSE(was_early.load());
  }
}

TEST_CASE("an item that skips its stages keeps its thread until the one before it has ended") {
  thread_team team{2};
  for (int call = 0; call < 3; ++call) {
    meeting place;
    std::atomic<bool> is_ended{false}, was_early{false};
    team.run_staged(3, [&](std::int64_t item, int, const thread_team::stage_order&) {
      if (item < 2) REQUIRE(place.come(2));
      if (item == 0) {
        for (int i = 0; i < 20'000 && !was_early.load(); ++i) std::this_thread::yield();  // time to come early
        is_ended = true;
      }
      if (item == 2) was_early = !is_ended.load();
    });
    REQUIRE_FALSE(was_early.load());
  }
}

TEST_CASE("the first exception is rethrown to the caller, and the team can still be used") {
  for (const int threads : {1, 3}) {
    thread_team team{threads};
    for (int call = 0; call < 20; ++call) {
      CHECK(what([&] {
              team.run(100, [&](std::int64_t item, int) {
                if (item == call) throw std::runtime_error{"item"};
              });
            }) == "item");
      CHECK(what([&] {
              team.run_staged(100, [&](std::int64_t item, int, const thread_team::stage_order& order) {
                order.enter(0);
                if (item == call) throw std::runtime_error{"in turn"};
                order.leave(0);
              });
            }) == "in turn");
      std::atomic<std::int64_t> sum{0};
      team.run(100, [&](std::int64_t item, int) { sum += item; });
      CHECK(sum == 4950);
    }
  }
}

// No thread begins an item after one that threw, and items begin in their order: only the first ones can have thrown.
TEST_CASE("items that had not begun when one threw are skipped") {
  for (const int threads : {1, 2, 5}) {
    thread_team team{threads};
    for (int call = 0; call < 20; ++call) {
      std::atomic<int> begun{0};
      const std::string thrown = what([&] {
        team.run(100, [&](std::int64_t item, int) {
          ++begun;
          throw std::runtime_error{std::to_string(item)};
        });
      });
      CHECK(begun.load() >= 1);
      CHECK(begun.load() <= threads);
      bool of_one_that_began = false;
      for (int item = 0; item < begun; ++item) of_one_that_began = of_one_that_began || thrown == std::to_string(item);
      CHECK(of_one_that_began);
    }
  }
}

TEST_CASE("only the calling thread polls") {
  struct poller {
    std::atomic<int> polls{0};
    std::atomic<int> polls_of_others{0};
    std::thread::id caller = std::this_thread::get_id();
  } local;
  const auto poll = [](poller& p) { ++(std::this_thread::get_id() == p.caller ? p.polls : p.polls_of_others); };
  thread_team team{3};
  const orrery::host_context context{&team, {local, poll}};
  CHECK(context.threads() == 3);
  std::atomic<int> nested{0};
  std::atomic<int> met{0};
  meeting place;
  context.for_each(3, [&](std::int64_t, const orrery::host_context& own) {
    met += place.come(3);  // so that each thread has one item
    own.poll();
    own.poll();
    nested += own.threads() - 1;
  });
  REQUIRE(met.load() == 3);
  CHECK(local.polls.load() == 2);
  CHECK(local.polls_of_others.load() == 0);
  CHECK(nested == 0);
}

// Key heads that the threads share whole (4), not at all (1), and in part (3); with and without running results.
TEST_CASE("the flash kernel's bits are the same on any number of threads") {
  for (const std::int64_t key_heads : {1, 3, 4}) {
    const oracle::shape shape{1, 331, 297, 2 * key_heads, key_heads, 24, 40, 0.2};
    const auto p = oracle::random_problem<float>(shape, static_cast<std::uint64_t>(key_heads));
    kernel_test::plan how;
    how.queries = kernel_test::zigzag(shape.queries, 2);
    how.keys = kernel_test::contiguous(shape.keys, 2);
    const oracle::answer a = oracle::solve(p, orrery::causal{-20});
    for (const bool one_call : {true, false}) {
      how.one_call = one_call;
      const auto alone = kernel_test::run<orrery::flash<float>>(p, orrery::causal{-20}, how);
      CHECK(oracle::compare(a.out, alone.out).error < oracle::tolerance<float>);
      CHECK(oracle::compare(a.grad_q, alone.grad_q).error < oracle::tolerance<float>);
      CHECK(oracle::compare(a.grad_k, alone.grad_k).error < oracle::tolerance<float>);
      CHECK(oracle::compare(a.grad_v, alone.grad_v).error < oracle::tolerance<float>);
      for (const int threads : {1, 2, 3}) {
        thread_team team{threads};
        how.team = &team;
        const auto shared = kernel_test::run<orrery::flash<float>>(p, orrery::causal{-20}, how);
        how.team = nullptr;
        CHECK(shared.out == alone.out);
        CHECK(shared.lse == alone.lse);
        CHECK(shared.grad_q == alone.grad_q);
        CHECK(shared.grad_k == alone.grad_k);
        CHECK(shared.grad_v == alone.grad_v);
      }
    }
  }
}
