// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/detail/function_ref.hpp"

#include <memory>
#include <string>
#include <utility>

#include <doctest/doctest.h>

using orrery::detail::function_ref;

namespace {

int called_with(function_ref<int(int)> call, int argument) { return call(argument); }

struct counter {
  int calls = 0;
  int operator()() { return ++calls; }
};

}  // namespace

TEST_CASE("a reference calls what it refers to") {
  int captured = 40;
  CHECK(called_with([&](int i) { return captured += i; }, 2) == 42);
  CHECK(captured == 42);
  const auto constant = [](int i) { return 2 * i; };
  CHECK(called_with(constant, 4) == 8);
}

TEST_CASE("a reference does not copy, nor do its copies") {
  counter count;
  function_ref<int()> first{count};
  const function_ref<int()> second = first;
  CHECK(first() == 1);
  CHECK(second() == 2);
  CHECK(count.calls == 2);
  counter other;
  first = other;
  CHECK(first() == 1);
  CHECK(count.calls == 2);
}

TEST_CASE("a reference to an object calls a function for it") {
  std::string text = "a";
  const function_ref<void(char)> append{text, [](std::string& to, char c) { to += c; }};
  append('b');
  append('c');
  CHECK(text == "abc");
  const std::string& constant = text;
  CHECK(function_ref<int()>{constant, [](const std::string& s) { return static_cast<int>(s.size()); }}() == 3);
}

TEST_CASE("arguments are passed on, and results may be anything that converts") {
  const auto take = [](std::unique_ptr<int> owned, int& out) { out = *owned; };
  int out = 0;
  function_ref<void(std::unique_ptr<int>, int&)>{take}(std::make_unique<int>(7), out);
  CHECK(out == 7);
  const auto number = [] { return 3; };
  CHECK(function_ref<double()>{number}() == 3.0);
  function_ref<void()>{number}();
  int value = 5;
  const auto refer = [&]() -> int& { return value; };
  function_ref<int&()>{refer}() = 6;
  CHECK(value == 6);
}

TEST_CASE("an empty reference says so") {
  CHECK(!function_ref<void()>{});
  const auto nothing = [] {};
  CHECK(static_cast<bool>(function_ref<void()>{nothing}));
  static_assert(!std::is_constructible_v<function_ref<int()>, int&>);
  static_assert(!std::is_constructible_v<function_ref<int(int)>, counter&>);
  static_assert(!std::is_constructible_v<function_ref<int()>, const counter&>);
  static_assert(sizeof(function_ref<void()>) == 2 * sizeof(void*));
  static_assert(std::is_trivially_copyable_v<function_ref<void()>>);
}
