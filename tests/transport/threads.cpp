// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Ranks that are threads: what they share, and how they fail together.
#include "orrery/transport/threads.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <future>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention.hpp"
#include "orrery/kernel/flash.hpp"
#include "orrery/schedule/builder.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/transport/counted.hpp"

#include "support/time_limit.hpp"

namespace threads_test {

namespace {

namespace threads {

using orrery::threads::channel;
using orrery::threads::options;
using orrery::threads::rendezvous;
using orrery::threads::shared_world;
using orrery::threads::world;

/// As the library's, but within a time limit, whatever the deadline: less than the one that options have by default.
template <class Body>
void run(int ranks, const options& options, const Body& body) {
  const time_limit limit{std::chrono::seconds{45}};
  orrery::threads::run(ranks, options, body);
}
template <class Body>
void run(int ranks, const Body& body) {
  run(ranks, options{}, body);
}

}  // namespace threads

static_assert(orrery::transport<threads::world>);
static_assert(orrery::transport<orrery::counted<threads::world>>);

/// Waiting in these tests is meant to end by the deadline: short, but long enough for two threads to meet.
constexpr threads::options impatient{.deadline = 0.3};

const std::string lost = "; this world cannot be used any more";

/// Rank 0 receives key shard 1 (or the partial of query shard 0) from rank 1.
orrery::program one_message(int rank, orrery::schedule::payload payload = orrery::schedule::payload::operand) {
  orrery::builder schedule{rank, 2};
  const orrery::schedule::blocks what =
      payload == orrery::schedule::payload::operand ? orrery::key(1) : orrery::query(0);
  schedule.next_step();
  schedule.begin_exchange(rank == 1 ? 0 : orrery::schedule::no_rank, rank == 0 ? 1 : orrery::schedule::no_rank, {},
                          payload);
  if (rank == 1) schedule.send(what);
  if (rank == 0) schedule.receive(what);
  schedule.next_step();
  orrery::program p = schedule;
  orrery::schedule::finish(p);
  return p;
}

/// One rank's end of `one_message`, over `bytes` of its own.
struct end_of_message {
  std::array<std::byte, 64> memory{};
  threads::channel channel;

  end_of_message(threads::world& on, std::int64_t bytes = 8,
                 orrery::schedule::payload payload = orrery::schedule::payload::operand)
      : channel{on.open(one_message(on.rank(), payload), pieces(on.rank(), bytes))} {}

  void call() {
    channel.begin();
    channel.post(0);
    channel.await(0);
  }

 private:
  std::vector<orrery::exchange_pieces> pieces(int rank, std::int64_t bytes) {
    std::vector<orrery::exchange_pieces> all(1);
    (rank == 1 ? all[0].sent : all[0].received).push_back({memory.data(), bytes});
    return all;
  }
};

/// What each rank's `body` throws as a transport_error.
template <class Body>
std::vector<std::string> failures(int ranks, const threads::options& options, const Body& body) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks), "nothing");
  try {
    threads::run(ranks, options, [&](threads::world& on) {
      try {
        body(on);
      } catch (const orrery::transport_error& e) {
        said[static_cast<std::size_t>(on.rank())] = e.what();
        throw;
      }
    });
  } catch (const std::exception&) {}
  return said;
}

template <class Exception = std::invalid_argument, class Call>
std::string what(const Call& call) {
  try {
    call();
  } catch (const Exception& e) {
    return e.what();
  }
  return "nothing";
}

}  // namespace

TEST_CASE("each rank runs once, and knows its number and the world's size") {
  for (const int ranks : {1, 2, 7, 40}) {
    std::vector<int> ran(static_cast<std::size_t>(ranks), 0);
    threads::run(ranks, [&](auto& on) {
      ++ran[static_cast<std::size_t>(on.rank())];
      if (on.size() != ranks) throw std::logic_error{"size"};
    });
    for (const int times : ran) CHECK(times == 1);
  }
}

TEST_CASE("barrier: no rank leaves before all have come") {
  const int ranks = 8;
  std::atomic<int> come{0};
  CHECK_NOTHROW(threads::run(ranks, [&](auto& on) {
    for (int round = 1; round <= 50; ++round) {
      ++come;
      on.barrier();
      if (come.load() < round * ranks) throw std::logic_error{"left early"};
      on.barrier();
    }
  }));
  CHECK(come == 50 * ranks);
}

TEST_CASE("all_gather: every rank gets the texts of all ranks, in their order") {
  CHECK_NOTHROW(threads::run(5, [](auto& on) {
    for (const std::string round : {"a", "", "a longer text that is not kept inside the string"}) {
      const std::vector<std::string> all = on.all_gather(round + std::to_string(on.rank()));
      if (all.size() != 5) throw std::logic_error{"size"};
      for (int rank = 0; rank < 5; ++rank) {
        if (all[static_cast<std::size_t>(rank)] != round + std::to_string(rank)) throw std::logic_error{"text"};
      }
    }
  }));
}

TEST_CASE("all_reduce_sum: every rank gets the sums, added in the order of the ranks, with the same bits") {
  const int ranks = 7;
  for (const std::size_t count : {0U, 1U, 3U, 100U}) {
    // Of different magnitudes, so that another order would have other bits.
    const auto value = [](int rank, std::size_t i) {
      return std::ldexp(1.0F + 0.3F * static_cast<float>(i), 5 * (rank * 3 % 7) - 14) * (rank % 2 == 0 ? 1.0F : -1.0F);
    };
    CHECK_NOTHROW(threads::run(ranks, [&](auto& on) {
      for (int call = 0; call < 3; ++call) {
        std::vector<float> local(count);
        for (std::size_t i = 0; i < count; ++i) local[i] = value(on.rank(), i);
        on.all_reduce_sum(std::span{local});
        for (std::size_t i = 0; i < count; ++i) {
          float sum = 0;
          for (int rank = 0; rank < ranks; ++rank) sum += value(rank, i);
          if (local[i] != sum) throw std::logic_error{"sum"};
        }
      }
    }));
  }
}

TEST_CASE("all_reduce_sum takes an array, through adaptors, too") {
  CHECK_NOTHROW(threads::run(3, [](threads::world& on) {
    orrery::counted<threads::world> counting{on};
    std::array<int, 2> values{on.rank(), 5};
    on.all_reduce_sum(std::span{values});
    counting.all_reduce_sum(std::span{values});
    if (values != std::array<int, 2>{9, 45}) throw std::logic_error{"sum"};
  }));
}

TEST_CASE("all_reduce_sum of different numbers of values is refused on every rank") {
  std::vector<std::string> said(3);
  threads::run(3, [&](auto& on) {
    std::vector<double> local(on.rank() == 2 ? 5 : 4);
    said[static_cast<std::size_t>(on.rank())] = what([&] { on.all_reduce_sum(std::span{local}); });
    on.barrier();
  });
  for (const std::string& one : said) {
    CHECK(one ==
          "orrery: ranks give different values to one collective call: ranks 0, 1 call all_reduce_sum of 4 values of "
          "double; rank 2 calls all_reduce_sum of 5 values of double; give equally many");
  }
}

namespace {

/// A number whose addition goes on, where there is something to watch, until the other rank has given up waiting, and a
/// little longer: has that one left meanwhile?
struct slow_number {
  struct watch {
    threads::world* world;
    const std::atomic<bool>* other_left;
    bool left_early = false;
  };
  static inline thread_local watch* watched = nullptr;
  int value = 0;

  slow_number& operator+=(const slow_number& other) {
    value += other.value;
    if (watched == nullptr) return *this;
    while (watched->world->usable()) std::this_thread::yield();
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds{50};
    while (!*watched->other_left && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    watched->left_early = *watched->other_left;
    return *this;
  }
};

}  // namespace

TEST_CASE("a rank that gives up a collective leaves it when no rank accesses its memory any more") {
  std::atomic<bool> rank_0_left{false};
  bool early = false;
  const std::vector<std::string> said = failures(2, impatient, [&](auto& on) {
    std::vector<slow_number> values(1);  // rank 1 adds it up, and writes it to both
    slow_number::watch watch{&on, &rank_0_left};
    if (on.rank() == 1) slow_number::watched = &watch;
    try {
      on.all_reduce_sum(std::span{values});
    } catch (const orrery::transport_error&) {
      if (on.rank() == 0) rank_0_left = true;
      if (on.rank() == 1) early = watch.left_early;
      throw;
    }
  });
  CHECK_FALSE(early);
  CHECK(said[0].find("rank 0 has waited 0.3 s for all ranks to come to the same collective call; missing: rank 1") !=
        std::string::npos);
}

TEST_CASE("a message arrives, call after call, in whatever order its ranks come") {
  CHECK_NOTHROW(threads::run(2, [](auto& on) {
    end_of_message end{on};
    for (unsigned char call = 1; call < 200; ++call) {
      if (on.rank() == 1) end.memory.fill(std::byte{call});
      end.call();
      if (on.rank() == 1) end.memory.fill(std::byte{0});  // sent is sent
      if (on.rank() == 0 && (end.memory[7] != std::byte{call} || end.memory[8] != std::byte{0})) {
        throw std::logic_error{"message " + std::to_string(call)};
      }
      if (call % 3 == 0) on.barrier();
    }
  }));
}

TEST_CASE("options are checked") {
  const auto with_deadline = [](double seconds) {
    return what([&] { threads::run(1, {.deadline = seconds}, [](auto&) {}); });
  };
  const std::string expected = ", expected a positive number of seconds";
  CHECK(with_deadline(0) == "orrery: threads::options: deadline is 0.000000" + expected);
  CHECK(with_deadline(-1.5) == "orrery: threads::options: deadline is -1.500000" + expected);
  CHECK(with_deadline(std::numeric_limits<double>::infinity()) ==
        "orrery: threads::options: deadline is inf" + expected);
  CHECK(with_deadline(std::nan("")) == "orrery: threads::options: deadline is nan" + expected);
  CHECK(what([] { threads::run(1, {.threads_per_rank = 0}, [](auto&) {}); }) ==
        "orrery: threads::options: threads_per_rank is 0, expected at least 1");
  for (const int ranks : {0, -3}) {
    CHECK(what([&] { threads::run(ranks, [](auto&) {}); }) ==
          "orrery: threads::run: the number of ranks is " + std::to_string(ranks) + ", expected at least 1");
  }
}

TEST_CASE("a deadline may have any length") {
  for (const double seconds : {1e10, 1e300}) {
    CHECK_NOTHROW(threads::run(2, {.deadline = seconds}, [](auto& on) {
      end_of_message end{on};
      for (int call = 0; call < 100; ++call) end.call();
    }));
  }
}

TEST_CASE("kernels get as many threads as the options say") {
  threads::run(2, {.threads_per_rank = 3}, [](auto& on) {
    const end_of_message end{on};
    if (end.channel.context().threads() != 3) throw std::logic_error{"threads"};
  });
}

TEST_CASE("the first exception is thrown by run, as it was, and stops the others") {
  struct local {
    int number;
  };
  CHECK_THROWS_AS(threads::run(3,
                               [](auto& on) {
                                 if (on.rank() == 1) throw local{7};
                                 on.barrier();
                               }),
                  local);
  const std::vector<std::string> said = failures(3, {}, [](auto& on) {
    if (on.rank() == 1) throw std::out_of_range{"boom"};
    on.barrier();
  });
  CHECK(said[0].find("orrery: rank 0 stops: rank 1 failed: boom") == 0);
  CHECK(said[0].rfind(lost) == said[0].size() - lost.size());
  CHECK(said[1] == "nothing");
  CHECK(said[2].find("orrery: rank 2 stops: rank 1 failed: boom") == 0);
  CHECK(what<std::out_of_range>([] {
          threads::run(3, [](auto& on) {
            if (on.rank() == 1) throw std::out_of_range{"boom"};
            on.barrier();
          });
        }) == "boom");
}

TEST_CASE("a rank that does not communicate is not stopped by another's failure") {
  bool ended = false;
  CHECK_THROWS_AS(threads::run(2,
                               [&](auto& on) {
                                 if (on.rank() == 1) throw std::out_of_range{"boom"};
                                 ended = true;
                               }),
                  std::out_of_range);
  CHECK(ended);
}

TEST_CASE("a failure stops those who wait for a message, and every later call") {
  const std::vector<std::string> said = failures(2, {}, [](auto& on) {
    end_of_message end{on};
    end.call();
    if (on.rank() == 1) throw std::runtime_error{"out of memory"};
    CHECK_THROWS_AS(end.call(), orrery::transport_error);
    CHECK_THROWS_AS(on.barrier(), orrery::transport_error);
    CHECK_THROWS_AS(on.barrier(), orrery::transport_error);  // two arrivals are not two ranks
    CHECK_FALSE(on.usable());
    end.call();
  });
  CHECK(said[0].find("orrery: rank 0 stops: rank 1 failed: out of memory; rank 0 was ") == 0);
}

TEST_CASE("a rank that never comes is named, with the step, the block and who waits") {
  // Rank `late` waits for something else, here for the failure of the other; the other waits for it.
  const auto run = [](int late, orrery::schedule::payload payload) {
    std::promise<void> over;
    const std::shared_future<void> until = over.get_future().share();
    return failures(2, impatient, [&](auto& on) {
      end_of_message end{on, 8, payload};
      if (on.rank() == late) {
        until.wait();
        end.call();
        return;
      }
      try {
        end.call();
      } catch (...) {
        over.set_value();
        throw;
      }
      over.set_value();
    });
  };
  const auto says = [](int waits, const std::string& what) {
    const std::string late = "rank " + std::to_string(1 - waits);
    const std::string why = " stops: rank " + std::to_string(waits) + " has waited 0.3 s in step 2 for " + what + "; " +
                            late + " is not waiting: it is late or stopped";
    std::vector<std::string> both(2);
    both[static_cast<std::size_t>(waits)] = "orrery: rank " + std::to_string(waits) + why + lost;
    both[static_cast<std::size_t>(1 - waits)] = "orrery: " + late + why + "; " + late + " was beginning a call" + lost;
    return both;
  };
  CHECK(run(1, orrery::schedule::payload::operand) == says(0, "key shard 1 from rank 1"));
  CHECK(run(0, orrery::schedule::payload::operand) == says(1, "rank 0 to take key shard 1"));
  CHECK(run(1, orrery::schedule::payload::partial) == says(0, "the partial of query shard 0 from rank 1"));
}

TEST_CASE("a rank that never comes to a collective call") {
  std::promise<void> over;
  const std::shared_future<void> until = over.get_future().share();
  const std::vector<std::string> said = failures(2, impatient, [&](auto& on) {
    if (on.rank() == 1) return until.wait();
    try {
      on.barrier();
    } catch (...) {
      over.set_value();
      throw;
    }
  });
  CHECK(said[0] == "orrery: rank 0 stops: rank 0 has waited 0.3 s for all ranks to come to the same collective call; " +
                       ("missing: rank 1" + lost));
}

TEST_CASE("a rank that ends early is named at once, whatever the deadline") {
  CHECK(
      failures(2, {.deadline = 3600}, [](auto& on) {
        end_of_message end{on};
        if (on.rank() == 0) end.call();
      })[0] == "orrery: rank 0 stops: rank 0 waits in step 2 for key shard 1 from rank 1, but rank 1 has ended" + lost);
  CHECK(failures(3, {.deadline = 3600},
                 [](auto& on) {
                   if (on.rank() != 2) on.barrier();
                 })[0]
            .find("for all ranks to come to the same collective call, but rank 2 has ended") != std::string::npos);
}

TEST_CASE("what a rank has posted before it gives up is never copied: its memory may be gone") {
  for (const int leaver : {0, 1}) {
    CHECK_NOTHROW(threads::run(2, [&](auto& on) {
      std::optional<end_of_message> end{on};
      std::array<std::byte, 64>& memory = end->memory;
      end->channel.begin();
      if (on.rank() == 1) memory.fill(std::byte{7});
      if (on.rank() == leaver) {
        end->channel.post(0);
        const threads::channel gone = std::move(end->channel);
      }
      on.barrier();
      if (on.rank() != leaver) end->channel.post(0);
      on.barrier();
      if (on.rank() == 0 && memory[0] != std::byte{0}) throw std::logic_error{"it was copied"};
    }));
  }
}

namespace {

/// What a rank of a world of two throws that waits for the other one; `done(n)` answers the n-th question whether what
/// it waits for is there.
template <class Done>
std::string said_in_wait(threads::shared_world& world, const Done& done) {
  const time_limit limit;
  int asked = 0;
  return what<orrery::transport_error>([&] {
    world.wait(
        0, 1, [&] { return done(++asked); }, [] { return std::string{"for a message"}; });
  });
}

}  // namespace

TEST_CASE("a rank may end when its messages have been received, before the others notice") {
  threads::shared_world world{2, {.deadline = 3600}};
  world.leave(1);
  // The message comes, and rank 1 ends, after rank 0 has looked for the message and before it looks for rank 1.
  for (const int arrives : {1, 2, 3}) {
    CHECK(said_in_wait(world, [&](int asked) { return asked >= arrives; }) == "nothing");
  }
  CHECK_FALSE(world.failed());
  CHECK(said_in_wait(world, [](int) { return false; }) ==
        "orrery: rank 0 stops: rank 0 waits for a message, but rank 1 has ended" + lost);
}

TEST_CASE("a rank that sleeps is woken by whatever ends its wait") {
  // Rank 0 asks a second time when it holds the lock without which nobody can wake it: it is then about to sleep.
  const auto said_when = [](const auto& event) {
    threads::shared_world world{2, {.deadline = 3600}};
    std::atomic<bool> asleep{false};
    std::atomic<bool> arrived{false};
    std::thread other{[&] {
      while (!asleep) std::this_thread::yield();
      event(world, arrived);
    }};
    const std::string said = said_in_wait(world, [&](int asked) {
      asleep = asked >= 2;
      return arrived.load();
    });
    other.join();
    return said;
  };
  CHECK(said_when([](auto& world, auto& arrived) {
          arrived = true;
          world.wake(0);
        }) == "nothing");
  CHECK(said_when([](auto& world, auto&) { world.fail("rank 1 failed in step 3"); }) ==
        "orrery: rank 0 stops: rank 1 failed in step 3; rank 0 was waiting for a message" + lost);
  CHECK(said_when([](auto& world, auto&) { world.leave(1); }) ==
        "orrery: rank 0 stops: rank 0 waits for a message, but rank 1 has ended" + lost);
}

TEST_CASE("ranks that wait for each other say so") {
  // Both wait before either posts. A busy machine may miss a short deadline, before the second one waits.
  const std::string step = " s in step 2 for ";
  const std::string of_0 = "key shard 1 from rank 1, which itself waits for rank 0, which waits for rank 1";
  const std::string of_1 = "rank 0 to take key shard 1, which itself waits for rank 1, which waits for rank 0";
  bool found = false;
  std::string said;
  for (double deadline = 0.3; deadline < 30 && !found; deadline *= 3) {
    said = failures(2, {.deadline = deadline}, [](auto& on) {
      end_of_message end{on};
      end.channel.begin();
      end.channel.await(0);
    })[0];
    found = said.find(step + of_0 + lost) != std::string::npos || said.find(step + of_1 + ";") != std::string::npos;
  }
  INFO(said);
  CHECK(found);
}

TEST_CASE("all ranks leave a collective call of a world that has failed") {
  // Both calls show a rank's memory to the others, and so end only when nobody looks at it any more.
  for (const bool sums : {false, true}) {
    const std::vector<std::string> said = failures(4, {.deadline = 3600}, [&](auto& on) {
      if (on.rank() == 3) throw std::runtime_error{"out of memory"};
      std::vector<double> values(8);
      if (sums) on.all_reduce_sum(std::span{values});
      static_cast<void>(on.open(orrery::builder{on.rank(), 4}, {}));
    });
    for (int rank = 0; rank < 3; ++rank) {
      CHECK(said[static_cast<std::size_t>(rank)].find("rank 3 failed: out of memory") != std::string::npos);
    }
  }
}

TEST_CASE("a message whose copy has thrown is released by both ends") {
  const time_limit limit;
  threads::rendezvous ends;
  int copies = 0;
  const auto copy = [&] { ++copies; };
  CHECK_FALSE(ends.post(copy));
  CHECK(ends.post(copy));
  CHECK(ends.copied() == 1);
  CHECK_FALSE(ends.post(copy));
  CHECK_THROWS_AS(ends.post([] { throw std::runtime_error{"copy"}; }), std::runtime_error);
  CHECK(ends.copied() == 1);
  ends.withdraw();  // waits for a copy that is under way, and for none that has thrown
  ends.withdraw();
  CHECK_FALSE(ends.post(copy));
  CHECK_FALSE(ends.post(copy));
  CHECK(copies == 1);
}

TEST_CASE("a rank that abandons a call is named at once, even if it continues") {
  std::promise<void> noticed;
  const std::shared_future<void> until = noticed.get_future().share();
  const std::vector<std::string> said = failures(2, {.deadline = 3600}, [&](auto& on) {
    end_of_message end{on};
    if (on.rank() == 1) {
      end.channel.begin();
      end.channel.abandon("in step 2: out of memory");
      return until.wait();
    }
    try {
      end.call();
    } catch (...) {
      noticed.set_value();
      throw;
    }
    noticed.set_value();
  });
  CHECK(said[0].find("orrery: rank 0 stops: rank 1 failed in step 2: out of memory; rank 0 was ") == 0);
  CHECK(said[1] == "nothing");
}

TEST_CASE("a call that begins before the last one is finished is refused") {
  for (const bool posts : {false, true}) {
    const std::vector<std::string> said = failures(2, {}, [&](auto& on) {
      end_of_message end{on};
      end.call();  // one that is finished
      end.channel.begin();
      if (posts || on.rank() == 1) end.channel.post(0);
      on.barrier();
      if (on.rank() == 0) end.channel.begin();
      on.barrier();
    });
    CHECK(said[0] == "orrery: rank 0 stops: rank 0 begins a call, but has not finished its last one" + lost);
    CHECK(said[1].find("rank 0 begins a call, but has not finished its last one; rank 1 was ") != std::string::npos);
  }
}

TEST_CASE("the two ends of a message must agree about its size") {
  const std::vector<std::string> said = failures(2, {}, [](auto& on) {
    end_of_message end{on, on.rank() == 0 ? 8 : 16};
    end.call();
  });
  for (const std::string& one : said) {
    CHECK(one ==
          "orrery: rank 1 sends key shard 1 to rank 0, which does not expect it, or not in this size; this world can "
          "still be used");
  }
  CHECK_NOTHROW(threads::run(2, [](auto& on) {
    CHECK_THROWS_AS(end_of_message(on, on.rank() == 0 ? 8 : 16), orrery::transport_error);
    if (!on.usable()) throw std::logic_error{"not usable"};
    end_of_message{on}.call();
  }));
}

TEST_CASE("a message that no rank expects") {
  const std::vector<std::string> said = failures(2, {}, [](auto& on) {
    orrery::builder schedule{on.rank(), 2};
    std::array<std::byte, 8> memory{};
    std::vector<orrery::exchange_pieces> pieces;
    if (on.rank() == 1) {
      schedule.begin_exchange(0, orrery::schedule::no_rank);
      schedule.send(orrery::key(1));
      pieces.push_back({{{memory.data(), 8}}, {}});
    }
    orrery::program p = schedule;
    orrery::schedule::finish(p);
    const auto channel = on.open(p, pieces);
    on.barrier();
  });
  CHECK(said[1].find("which does not expect it") != std::string::npos);
  CHECK(said[0].find("rank 1 sends key shard 1 to rank 0, which does not expect it") != std::string::npos);
}

TEST_CASE("lanes: messages between the same ranks, posted in one order and awaited in another") {
  // Two exchanges in each direction, in lanes of their own; the ranks post them in opposite orders.
  CHECK_NOTHROW(threads::run(2, [](auto& on) {
    const int me = on.rank();
    const int other = 1 - me;
    orrery::builder schedule{me, 2};
    for (int i = 0; i < 2; ++i) {
      const int lane = i == me ? 0 : 1;
      const auto s = lane == 0 ? orrery::schedule::side::query : orrery::schedule::side::key;
      schedule.begin_exchange(other, other, {lane});
      schedule.send({s, me});
      schedule.receive({s, other});
    }
    orrery::program p = schedule;
    orrery::schedule::finish(p);
    std::array<std::uint64_t, 4> memory{};
    const auto piece = [&](int i) {
      return orrery::piece{reinterpret_cast<std::byte*>(&memory[static_cast<std::size_t>(i)]), 8};
    };
    auto channel = on.open(p, {{{piece(0)}, {piece(2)}}, {{piece(1)}, {piece(3)}}});
    for (std::uint64_t call = 1; call < 50; ++call) {
      for (int i = 0; i < 2; ++i) {
        const std::uint64_t lane = i == me ? 0 : 1;
        memory[static_cast<std::size_t>(i)] = 100 * call + 10 * static_cast<std::uint64_t>(me) + lane;
      }
      channel.begin();
      channel.post(0);
      channel.post(1);
      channel.await(0);
      channel.await(1);
      for (int i = 0; i < 2; ++i) {
        const std::uint64_t lane = i == me ? 0 : 1;
        if (memory[static_cast<std::size_t>(2 + i)] != 100 * call + 10 * static_cast<std::uint64_t>(other) + lane) {
          throw std::logic_error{"the messages are confused"};
        }
      }
    }
  }));
}

namespace {

/// Runs body(shared, rank) on a thread of the test's own for each rank.
template <class Body>
void on_own_threads(threads::shared_world& shared, const Body& body) {
  const time_limit limit;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < shared.size(); ++rank) threads.emplace_back([&body, &shared, rank] { body(shared, rank); });
  for (std::thread& one : threads) one.join();
}

/// What each rank says that joins on a thread of its own and runs `body`: "nothing", or what is thrown.
template <class Body>
std::vector<std::string> said_by_joined(int ranks, const Body& body) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks));
  threads::shared_world shared{ranks, {.deadline = 3600}};
  on_own_threads(shared, [&](threads::shared_world& world, int rank) {
    said[static_cast<std::size_t>(rank)] = what<std::exception>([&] {
      auto on = orrery::threads::join(world, rank);
      body(on);
    });
  });
  return said;
}

}  // namespace

TEST_CASE("ranks on the caller's threads: collectives, messages and operators") {
  const auto said = said_by_joined(2, [](threads::world& on) {
    if (on.size() != 2) throw std::logic_error{"size"};
    double sum = on.rank() + 1;
    on.all_reduce_sum(std::span{&sum, 1});
    if (sum != 3) throw std::logic_error{"the sum"};
    end_of_message end{on};
    for (int call = 0; call < 10; ++call) {
      end.memory.fill(std::byte{0});
      if (on.rank() == 1) end.memory[0] = static_cast<std::byte>(call);
      end.call();
      if (end.memory[0] != static_cast<std::byte>(call)) throw std::logic_error{"the message"};
    }
    orrery::attention<orrery::ring, orrery::flash<float>> attend{on, {.length = 4, .head_dim = 1}};
    std::vector<float> ones(2, 1.0F), out(2), lse(2);
    const auto in = orrery::batch_sequence_head_dim(ones.data(), 1, 2, 1, 1);
    attend.forward(in, in, in, orrery::batch_sequence_head_dim(out.data(), 1, 2, 1, 1),
                   orrery::batch_head_sequence(lse.data(), 1, 1, 2));
    if (out != ones) throw std::logic_error{"the mean of ones"};
  });
  CHECK(said == std::vector<std::string>{"nothing", "nothing"});
}

TEST_CASE("ranks on the caller's threads: one that ends, fails or gives up is named at once") {
  const auto ended = said_by_joined(3, [](threads::world& on) {
    if (on.rank() != 2) on.barrier();
  });
  CHECK(ended[0].find("for all ranks to come to the same collective call, but rank 2 has ended") != std::string::npos);
  CHECK(ended[2] == "nothing");
  const auto failed = said_by_joined(2, [](threads::world& on) {
    if (on.rank() == 1) throw std::out_of_range{"boom"};
    on.barrier();
  });
  CHECK(failed[0].find("orrery: rank 0 stops: rank 1 failed with an exception") == 0);
  CHECK(failed[1] == "boom");
  const auto gave_up = said_by_joined(2, [](threads::world& on) {
    if (on.rank() == 0) on.barrier();
    on.abandon("because of its disk");
  });
  CHECK(gave_up[0].find("orrery: rank 0 stops: rank 1 failed because of its disk") == 0);
  // An exception that was under way before is no failure of the rank.
  threads::shared_world shared{1};
  struct joins_when_destroyed {
    threads::shared_world* shared;
    ~joins_when_destroyed() { static_cast<void>(orrery::threads::join(*shared, 0)); }
  };
  CHECK_THROWS_AS(
      [&] {
        const joins_when_destroyed later{&shared};
        throw std::out_of_range{"boom"};
      }(),
      std::out_of_range);
  CHECK_FALSE(shared.failed());
}

TEST_CASE("ranks on the caller's threads: each joins once, with a number that there is") {
  threads::shared_world shared{2};
  for (const int rank : {-1, 2}) {
    CHECK(what([&] { static_cast<void>(orrery::threads::join(shared, rank)); }) ==
          "orrery: threads::join: the rank is " + std::to_string(rank) + ", expected a number from 0 to 1");
  }
  const std::string twice =
      "orrery: threads::join: rank 1 has joined before, and a rank joins once; give each thread a rank of its own, "
      "keep "
      "its world while it works, and make another shared_world to start again";
  {
    const auto world = orrery::threads::join(shared, 1);
    CHECK(what<std::logic_error>([&] { static_cast<void>(orrery::threads::join(shared, 1)); }) == twice);
    CHECK(world.usable());
  }
  CHECK(what<std::logic_error>([&] { static_cast<void>(orrery::threads::join(shared, 1)); }) == twice);
  CHECK(what([] { threads::shared_world{0}; }) ==
        "orrery: threads::shared_world: the number of ranks is 0, expected at least 1");
}

TEST_CASE("host_memory is aligned and zeroed") {
  const orrery::detail::host_memory memory{1000};
  CHECK(reinterpret_cast<std::uintptr_t>(memory.data()) % 64 == 0);
  bool zero = true;
  for (int i = 0; i < 1000; ++i) zero = zero && memory.data()[i] == std::byte{0};
  CHECK(zero);
  CHECK(orrery::detail::host_memory{0}.data() == nullptr);
}

}  // namespace threads_test
