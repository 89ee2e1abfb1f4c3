// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Shards that are not a partition of the sequence, each in ascending order, are found, whatever the length.
#include "orrery/layout/detail/check_shards.hpp"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/layout/layout.hpp"

using orrery::segment;
using orrery::segments;
using orrery::detail::shard_check;
using orrery::detail::shard_fault;
using orrery::schedule::list;
using kind = orrery::detail::shard_fault::kind;

namespace {

template <class Layout>
constexpr list<segments> shards_of(int world, std::int64_t length) {
  list<segments> all;
  for (int rank = 0; rank < world; ++rank) all.push_back(Layout::shard(rank, world, length));
  return all;
}

template <class Layout>
constexpr bool is_right(int world, std::int64_t length) {
  return shard_check::run(shards_of<Layout>(world, length), length) == shard_fault{};
}

// A compiler gives up long before ten million steps.
static_assert(is_right<orrery::striped<1>>(64, 10'000'000));
static_assert(is_right<orrery::striped<3>>(7, 10'000'001));
static_assert(is_right<orrery::zigzag>(64, 10'000'000));
static_assert(is_right<orrery::contiguous>(64, 10'000'000));

list<segments> shards(std::initializer_list<std::initializer_list<segment>> ranks) {
  list<segments> all;
  for (const auto& pieces : ranks) {
    segments shard;
    for (const segment& piece : pieces) shard.add(piece);
    all.push_back(shard);
  }
  return all;
}

/// What is wrong, from the positions one by one.
shard_fault expected(const list<segments>& all, std::int64_t length) {
  std::vector<int> owners(static_cast<std::size_t>(length), -1);
  shard_fault twice;
  for (int rank = 0; rank < all.size(); ++rank) {
    std::int64_t last = -1;
    for (const segment& piece : all[rank]) {
      for (std::int64_t i = 0; i < piece.count; ++i) {
        const std::int64_t position = piece.position(i);
        if (last >= 0 && position <= last) return {kind::order, position, rank, 0, last};
        if (position < 0 || position >= length) return {kind::outside, position, rank};
        last = position;
      }
    }
  }
  for (int rank = 0; rank < all.size(); ++rank) {
    for (std::int64_t i = 0; i < all[rank].tokens(); ++i) {
      const std::int64_t position = all[rank].position(i);
      int& owner = owners[static_cast<std::size_t>(position)];
      if (owner >= 0 && (twice.found == kind::none || position < twice.position)) {
        twice = {kind::two_ranks, position, owner, rank};
      }
      owner = rank;
    }
  }
  const auto missing = std::find(owners.begin(), owners.end(), -1) - owners.begin();
  if (missing < length && (twice.found == kind::none || missing < twice.position)) return {kind::no_rank, missing};
  return twice;
}

void check_same(const list<segments>& all, std::int64_t length) {
  const shard_fault right = expected(all, length);
  const shard_fault found = shard_check::run(all, length);
  std::string text = "length " + std::to_string(length);
  for (const segments& shard : all) {
    text += " |";
    for (const segment& s : shard) {
      for (const std::int64_t n : {s.begin, s.count, s.run, s.stride}) text += " " + std::to_string(n);
      text += ";";
    }
  }
  INFO(text, ": ", found.message(), ", expected: ", right.message());
  CHECK(found.found == right.found);
  CHECK(found.position == right.position);
  CHECK(found.previous == right.previous);
  if (found.found == kind::two_ranks) {  // three ranks may have it
    int owners = 0;
    for (const int rank : {found.rank, found.other}) {
      bool has = false;
      for (std::int64_t i = 0; i < all[rank].tokens(); ++i) has = has || all[rank].position(i) == found.position;
      owners += has ? 1 : 0;
    }
    CHECK(owners == 2);
    CHECK(found.rank != found.other);
  } else {
    CHECK(found.rank == right.rank);
  }
}

/// Progressions that are a partition of the sequence, with strides of all kinds: one is cut into every second or third
/// of its runs, or into a front and a back, until there are enough.
std::vector<segment> random_partition(std::mt19937& engine, std::int64_t length, std::size_t pieces) {
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(engine() % static_cast<unsigned>(n)); };
  const std::int64_t run = 1 + below(3);
  std::vector<segment> all;  // of whole runs, and what remains
  if (length >= run) all.push_back({0, length / run * run, run, run});
  if (length % run > 0) all.push_back({length / run * run, length % run, run, run});
  for (int i = 0; i < 100 && all.size() < pieces; ++i) {
    const auto chosen = static_cast<std::size_t>(below(static_cast<std::int64_t>(all.size())));
    const segment cut = all[chosen];
    const std::int64_t runs = cut.count / cut.run;
    if (runs < 3) continue;
    all.erase(all.begin() + static_cast<std::ptrdiff_t>(chosen));
    if (below(3) == 0) {
      const std::int64_t front = 1 + below(runs - 1);
      all.push_back({cut.begin, front * cut.run, cut.run, cut.stride});
      all.push_back({cut.begin + front * cut.stride, cut.count - front * cut.run, cut.run, cut.stride});
    } else {
      const std::int64_t parts = 2 + below(2);
      for (std::int64_t part = 0; part < parts; ++part) {
        const std::int64_t own = (runs + parts - 1 - part) / parts;
        all.push_back({cut.begin + part * cut.stride, own * cut.run, cut.run, parts * cut.stride});
      }
    }
  }
  return all;
}

}  // namespace

TEST_CASE("shards that are a partition, and shards with something wrong, at random") {
  std::mt19937 engine{1};
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(engine() % static_cast<unsigned>(n)); };
  int right = 0;
  int wrong = 0;
  for (int i = 0; i < 4000; ++i) {
    const std::int64_t length = 1 + below(i % 2 == 0 ? 40 : 400);
    std::vector<segment> pieces = random_partition(engine, length, static_cast<std::size_t>(1 + below(9)));
    if (below(2) == 0) {
      segment& spoilt = pieces[static_cast<std::size_t>(below(static_cast<std::int64_t>(pieces.size())))];
      std::int64_t* const numbers[] = {&spoilt.begin, &spoilt.count, &spoilt.run, &spoilt.stride};
      std::int64_t& number = *numbers[below(4)];
      number += below(2) == 0 ? 1 + below(5) : -1 - below(5);
      if (spoilt.run < 1) spoilt.run = 1;
      if (below(4) == 0) pieces.push_back(spoilt);
      if (below(4) == 0) pieces.pop_back();
    }
    list<segments> all;
    for (std::size_t at = 0; at < pieces.size(); ++at) {  // one or two in a shard
      segments shard;
      shard.add(pieces[at]);
      if (below(4) == 0 && at + 1 < pieces.size()) shard.add(pieces[++at]);
      all.push_back(shard);
    }
    ++(expected(all, length).found == kind::none ? right : wrong);
    check_same(all, length);
  }
  CHECK(right > 500);
  CHECK(wrong > 500);
}

TEST_CASE("one token too many, too few, or elsewhere") {
  for (const int world : {1, 2, 3, 5, 8}) {
    for (const std::int64_t length : {1, 2, 7, 24, 61}) {
      for (const auto& shards :
           {shards_of<orrery::contiguous>(world, length), shards_of<orrery::zigzag>(world, length),
            shards_of<orrery::striped<1>>(world, length), shards_of<orrery::striped<3>>(world, length)}) {
        check_same(shards, length);
        check_same(shards, length + 1);
        check_same(shards, length - 1);
        for (int rank = 0; rank < world; ++rank) {
          for (const std::int64_t more : {-1, 1}) {
            for (const bool begins : {false, true}) {
              list<segments> spoilt = shards;
              spoilt[rank] = {};
              for (segment piece : shards[rank]) {
                (begins ? piece.begin : piece.count) += more;
                spoilt[rank].add(piece);
              }
              check_same(spoilt, length);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("runs that leave the sequence before they overlap are outside, not out of order") {
  const list<segments> all = shards({{{0, 8, 8, 8}, {8, 8, 4, 2}}});
  CHECK(expected(all, 10) == shard_fault{kind::outside, 10, 0});
  CHECK(shard_check::run(all, 10) == expected(all, 10));
}

TEST_CASE("shards that are right for one length are not taken for right for another") {
  const list<segments> all = shards_of<orrery::contiguous>(3, 10);
  CHECK(orrery::detail::check_shards(all, 10) == shard_fault{});
  CHECK(orrery::detail::check_shards(all, 11) == shard_fault{kind::no_rank, 10});
  CHECK(orrery::detail::check_shards(all, 10) == shard_fault{});
}

TEST_CASE("a segment in the middle of many periods of others") {
  for (std::int64_t begin = 97; begin < 104; ++begin) {
    for (const std::int64_t count : {1, 2, 5}) {
      list<segments> all = shards_of<orrery::striped<1>>(3, 300);
      segments more;
      more.add({begin, count, count, count});
      all.push_back(more);
      check_same(all, 300);
      // Also where there is room for it.
      list<segments> with_room = shards_of<orrery::striped<1>>(3, begin);
      for (segments& shard : with_room) {
        segment rest = shard[0];
        rest.begin += begin + count - begin % 3;
        shard.add(rest);
      }
      with_room.push_back(more);
      check_same(with_room, 300);
    }
  }
}

TEST_CASE("long regions one after the other, each with a period of its own") {
  list<segments> all;
  std::int64_t length = 0;
  for (const std::int64_t run : {1009, 1013, 1019, 1021, 1031, 1033, 1039, 1}) {
    const std::int64_t count = run << 40;
    for (const std::int64_t begin : {length, length + run}) {
      segments shard;
      shard.add({begin, count, run, 2 * run});
      all.push_back(shard);
    }
    length += 2 * count;
  }
  CHECK(shard_check::run(all, length) == shard_fault{});
  CHECK(shard_check::run(all, length + 1) == shard_fault{kind::no_rank, length});
}

TEST_CASE("messages") {
  const auto said = [](std::int64_t length, std::initializer_list<std::initializer_list<segment>> ranks) {
    return orrery::detail::check_shards(shards(ranks), length).message();
  };
  CHECK(said(8, {{{0, 4, 4, 4}}, {{4, 4, 4, 4}}}) == "");
  CHECK(said(8, {{{0, 4, 4, 4}}, {{4, 4, 4, 4}}}) == "");  // from memory
  CHECK(said(8, {{{0, 5, 5, 5}}, {{6, 2, 2, 2}}, {{4, 2, 2, 2}}}) ==
        "gives position 4 to ranks 0 and 2, expected each position in exactly one shard");
  CHECK(said(8, {{{0, 4, 1, 2}}, {{1, 3, 1, 2}}}) ==
        "gives position 7 to no rank, expected each position in exactly one shard");
  CHECK(said(8, {{}, {}}) == "gives position 0 to no rank, expected each position in exactly one shard");
  CHECK(said(8, {{{0, 4, 4, 4}}, {{4, 5, 5, 5}}}) ==
        "has position 8 in the shard of rank 1, which is not in the sequence");
  CHECK(said(8, {{{-1, 9, 9, 9}}}) == "has position -1 in the shard of rank 0, which is not in the sequence");
  CHECK(said(8, {{{4, 4, 4, 4}, {0, 4, 4, 4}}}) ==
        "has position 0 after position 7 in the shard of rank 0, expected ascending positions");
  CHECK(said(8, {{{7, 8, 1, -1}}}) ==
        "has position 6 after position 7 in the shard of rank 0, expected ascending positions");
  CHECK(said(8, {{{0, 8, 1, 0}}}) ==
        "has position 0 after position 0 in the shard of rank 0, expected ascending positions");
  CHECK(said(8, {{{0, 8, 0, 1}}}) == "gives rank 0 a segment whose runs have 0 tokens, expected at least 1");
}

TEST_CASE("numbers whose products overflow") {
  constexpr std::int64_t most = INT64_MAX;
  for (const std::int64_t length : {std::int64_t{8}, most / 2, most}) {
    for (const std::int64_t big : {most, most / 2, most - 7, -most}) {
      for (const std::int64_t other : {std::int64_t{1}, std::int64_t{3}, most, most / 3}) {
        for (const segment& piece : {segment{big, other, 1, 1}, segment{other, big, 1, 1}, segment{0, other, 1, big},
                                     segment{0, 9, other, big}, segment{1, big, 1, other}, segment{1, big, other, big},
                                     segment{most, big, other, other}}) {
          CHECK(orrery::detail::check_shards(shards({{piece}}), length).found != kind::none);
        }
      }
    }
  }
  const std::int64_t length = std::int64_t{1} << 62;
  for (const int world : {1, 3, 4, 1000}) {
    CHECK(is_right<orrery::contiguous>(world, length));
    CHECK(is_right<orrery::zigzag>(world, length));
    CHECK(is_right<orrery::striped<1>>(world, length));
    CHECK(is_right<orrery::striped<1>>(world, most));
    CHECK(is_right<orrery::striped<(std::int64_t{1} << 61) + 3>>(world, length));
    CHECK(is_right<orrery::striped<most>>(world, length));
  }
  static_assert(orrery::contiguous::shard(2, 4, length)[0] == segment{length / 2, length / 4, length / 4, length / 4});
}
