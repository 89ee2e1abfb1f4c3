// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/schedule/list.hpp"

#include <utility>

#include <doctest/doctest.h>

using orrery::schedule::list;

namespace {

constexpr list<int> counted(int n) {
  list<int> numbers;
  for (int i = 0; i < n; ++i) numbers.push_back(i);
  return numbers;
}
constexpr bool counts(const list<int>& numbers, int n) {
  if (numbers.size() != n) return false;
  for (int i = 0; i < n; ++i) {
    if (numbers[i] != i) return false;
  }
  return true;
}
static_assert(counts(counted(100), 100));

}  // namespace

TEST_CASE("a list grows and keeps what it has") {
  for (const int n : {0, 1, 2, 15, 16, 17, 63, 64, 65, 1000}) CHECK(counts(counted(n), n));
  list<list<int>> nested;
  for (int i = 0; i < 100; ++i) nested.push_back(counted(i));
  for (int i = 0; i < 100; ++i) CHECK(counts(nested[i], i));
}

TEST_CASE("a list can begin with a size") {
  CHECK(list<int>{}.empty());
  CHECK(list<int>(0).empty());
  CHECK(list<int>(-3).items == nullptr);
  const list<int> zeros(5);
  CHECK(zeros.size() == 5);
  for (const int zero : zeros) CHECK(zero == 0);
  const list<int> sevens(3, 7);
  CHECK(sevens.size() == 3);
  for (const int seven : sevens) CHECK(seven == 7);
}

TEST_CASE("copies are of their own") {
  list<int> original = counted(20);
  list<int> copy = original;
  CHECK(copy == original);
  CHECK(copy.items != original.items);
  copy[3] = 99;
  copy.push_back(1);
  CHECK(counts(original, 20));
  CHECK_FALSE(copy == original);
  copy = original;
  CHECK(copy == original);
  list<int>& same = copy;
  copy = same;
  CHECK(counts(copy, 20));
  list<int> grown = counted(40);
  grown = copy;
  grown.push_back(20);
  CHECK(counts(grown, 21));
}

TEST_CASE("moves leave nothing behind") {
  list<int> original = counted(20);
  const int* const items = original.items;
  list<int> moved = std::move(original);
  CHECK(moved.items == items);
  CHECK(counts(moved, 20));
  CHECK(original.empty());           // NOLINT(bugprone-use-after-move): that is the question
  CHECK(original.items == nullptr);  // NOLINT(bugprone-use-after-move)
  original.push_back(0);
  CHECK(counts(original, 1));
  list<int> assigned = counted(3);
  assigned = std::move(moved);
  CHECK(assigned.items == items);
  CHECK(counts(assigned, 20));
}

TEST_CASE("room is made in advance") {
  list<int> numbers;
  numbers.reserve(10);
  CHECK(numbers.empty());
  const int* const items = numbers.items;
  for (int i = 0; i < 10; ++i) numbers.push_back(i);
  CHECK(numbers.items == items);
  numbers.reserve(5);
  CHECK(numbers.items == items);
  int* const more = numbers.extend(3);
  more[0] = 10;
  more[1] = 11;
  more[2] = 12;
  CHECK(counts(numbers, 13));
  CHECK(numbers.extend(0) == numbers.end());
}

TEST_CASE("elements are taken out") {
  list<int> numbers = counted(5);
  CHECK(numbers.pop_back() == 4);
  CHECK(numbers.back() == 3);
  CHECK(counts(numbers, 4));
  numbers.erase(0);
  CHECK(numbers.size() == 3);
  CHECK(numbers[0] == 1);
  numbers.erase(2);
  CHECK(numbers.back() == 2);
  numbers.erase(0);
  numbers.erase(0);
  CHECK(numbers.empty());
  CHECK(numbers.begin() == numbers.end());
}

TEST_CASE("equal are lists with equal elements") {
  CHECK(counted(3) == counted(3));
  CHECK_FALSE(counted(3) == counted(4));
  CHECK_FALSE(counted(3) == list<int>(3));
  CHECK(list<int>{} == list<int>(0));
}
