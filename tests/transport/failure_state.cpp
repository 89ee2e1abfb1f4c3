// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/transport/detail/failure_state.hpp"

#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

using orrery::detail::failure_state;

namespace {

std::string stop(const failure_state& failure, int rank, std::string& message, const std::string& doing) {
  try {
    failure.stop(rank, message, doing);
  } catch (const orrery::transport_error& e) {
    return e.what();
  }
}

}  // namespace

TEST_CASE("the first failure counts") {
  failure_state failure;
  CHECK(!failure.happened());
  CHECK(failure.record({"rank ", "2", " failed"}));
  CHECK(failure.happened());
  CHECK(!failure.record("rank 3 failed"));
  CHECK(!failure.record_rank(4));
  CHECK(failure.why() == "rank 2 failed");
}

TEST_CASE("a rank stops with the same message in every call, which says what it was doing when another failed") {
  failure_state failure;
  failure.record("rank 2 failed");
  std::string of_rank_1, of_rank_2;
  const std::string first =
      "orrery: rank 1 stops: rank 2 failed; rank 1 was beginning a call; this world cannot be "
      "used any more";
  CHECK(stop(failure, 1, of_rank_1, "beginning a call") == first);
  CHECK(stop(failure, 1, of_rank_1, "coming to a collective call") == first);
  CHECK(stop(failure, 2, of_rank_2, "") == "orrery: rank 2 stops: rank 2 failed; this world cannot be used any more");
}

TEST_CASE("a rank's failure without a reason is told") {
  failure_state failure{"; the end"};
  CHECK(failure.record_rank(7));
  CHECK(!failure.record("later"));
  CHECK(failure.why().empty());
  std::string message;
  CHECK(stop(failure, 0, message, "") == "orrery: rank 0 stops: rank 7 failed; the end");
}

TEST_CASE("a reason is cut where its length is limited") {
  failure_state failure{"", 10};
  failure.record({"rank ", "12", " has failed"});
  CHECK(failure.why() == "rank 12 ha");
}

TEST_CASE("of several threads, one records the failure") {
  failure_state failure;
  std::vector<int> recorded(8);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < recorded.size(); ++i)
    threads.emplace_back([&, i] { recorded[i] = failure.record({"rank ", std::to_string(i)}) ? 1 : 0; });
  for (std::thread& thread : threads) thread.join();
  int winners = 0;
  for (std::size_t i = 0; i < recorded.size(); ++i) {
    winners += recorded[i];
    if (recorded[i] != 0) CHECK(failure.why() == "rank " + std::to_string(i));
  }
  CHECK(winners == 1);
}
