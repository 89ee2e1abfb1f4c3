// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include <map>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/transport/mpi/wait_chain.hpp"

using orrery::mpi::pending_wait;

namespace {

pending_wait for_rank(int rank) { return {"", {rank}, 0}; }
pending_wait for_all(int ranks, std::uint64_t call) { return {"", {0, ranks}, call}; }
const pending_wait for_nobody{};

/// What rank 0 finds out when those in `answers` answer, and whom it asks for that, in order.
struct found {
  std::string text;
  std::vector<int> asked;
};
found ask(int ranks, const pending_wait& local, const std::map<int, pending_wait>& answers) {
  orrery::mpi::wait_chain_query wait_chain_query;
  wait_chain_query.begin(0, ranks, local);
  found result;
  for (std::size_t answered = 0;;) {
    result.text = wait_chain_query.trace([&](int rank) { result.asked.push_back(rank); });
    if (answered == result.asked.size()) return result;
    for (; answered < result.asked.size(); ++answered) {
      if (const auto answer = answers.find(result.asked[answered]); answer != answers.end()) {
        wait_chain_query.take(answer->first, answer->second);
      }
    }
  }
}

constexpr const char* silent = " does not answer: it is late, stopped or dead";

}  // namespace

TEST_CASE("a peer that does not answer") {
  const found alone = ask(4, for_rank(2), {});
  CHECK(alone.text == std::string{"; rank 2"} + silent);
  CHECK(alone.asked == std::vector{2});
}

TEST_CASE("the chain is followed to its end") {
  const found chain = ask(5, for_rank(1), {{1, for_rank(4)}, {4, for_rank(2)}});
  CHECK(chain.text == std::string{", which itself waits for rank 4, which waits for rank 2; rank 2"} + silent);
  CHECK(chain.asked == std::vector{1, 4, 2});
  CHECK(ask(5, for_rank(1), {{1, for_rank(4)}, {4, for_nobody}}).text ==
        ", which itself waits for rank 4; rank 4 is not waiting: it computes");
}

TEST_CASE("a cycle ends") {
  CHECK(ask(3, for_rank(1), {{1, for_rank(2)}, {2, for_rank(0)}}).text ==
        ", which itself waits for rank 2, which waits for rank 0");
  // One that rank 0 is not part of.
  CHECK(ask(3, for_rank(1), {{1, for_rank(2)}, {2, for_rank(1)}}).text.find(", which waits for rank 1") !=
        std::string::npos);
}

TEST_CASE("ranks that are missing in a collective call") {
  const pending_wait here = for_all(4, 7);
  const found missing = ask(4, here, {{1, here}, {3, here}});
  CHECK(missing.text == std::string{"; missing: rank 2; rank 2"} + silent);
  CHECK(missing.asked == std::vector{1, 2, 3});
  CHECK(ask(4, here, {{2, here}}).text == std::string{"; missing: rank 1, 3; rank 1"} + silent);
  CHECK(ask(4, here, {{1, here}, {2, here}, {3, here}}).text.empty());
  // Elsewhere, and why.
  CHECK(ask(4, here, {{1, here}, {2, for_rank(3)}, {3, for_nobody}}).text ==
        "; missing: rank 2, 3, which itself waits for rank 3; rank 3 is not waiting: it computes");
  // In another call than this one; who does not answer is named first.
  CHECK(ask(4, here, {{1, for_all(4, 6)}, {2, here}}).text == std::string{"; missing: rank 3; rank 3"} + silent);
}

TEST_CASE("a peer that waits in a collective call") {
  const pending_wait there = for_all(3, 2);
  CHECK(ask(3, for_rank(1), {{1, there}}).text ==
        std::string{", which waits in a collective call; missing: rank 2; rank 2"} + silent);
  CHECK(ask(3, for_rank(1), {{1, there}, {2, there}}).text == ", which waits in a collective call; missing: rank 0");
}
