// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/transport/detail/peer_text.hpp"

#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

namespace {

using orrery::detail::peer_text;

template <class T>
bool reads(const std::string& text, T expected) {
  T read = 77;
  return peer_text{text}.number(read).ended() && read == expected;
}
template <class T>
bool rejects(const std::string& text) {
  T read = 77;
  peer_text whole{text};
  const bool number = whole.number(read).good();
  return !whole.ended() && (number || read == 77);
}

}  // namespace

TEST_CASE("peer_text: numbers, as std::to_string writes them") {
  for (const auto number : {std::numeric_limits<std::int64_t>::min(), std::int64_t{-10}, std::int64_t{-1},
                            std::int64_t{0}, std::int64_t{9}, std::numeric_limits<std::int64_t>::max()}) {
    CHECK(reads(std::to_string(number), number));
  }
  CHECK(reads(std::to_string(std::numeric_limits<std::uint64_t>::max()), std::numeric_limits<std::uint64_t>::max()));
  CHECK(reads("127", std::int8_t{127}));
  CHECK(reads("-128", std::int8_t{-128}));
  for (const char* text : {"", "-", "+1", " 1", "1 ", "01", "-0", "00", "1.0", "0x1", "a", "--1", "1e3"}) {
    INFO(std::string{text});
    CHECK(rejects<int>(text));
    CHECK(rejects<std::uint64_t>(text));
  }
  CHECK(rejects<std::int8_t>("128"));
  CHECK(rejects<std::int8_t>("-129"));
  CHECK(rejects<int>("2147483648"));
  CHECK(rejects<unsigned>("-1"));
  CHECK(rejects<std::uint64_t>("18446744073709551616"));
  CHECK(rejects<std::int64_t>("9223372036854775808"));
  CHECK(rejects<std::int64_t>("-9223372036854775809"));
  CHECK(rejects<std::int64_t>("999999999999999999999999999999"));
}

TEST_CASE("peer_text: bounds, words and what follows them") {
  int number = 7;
  CHECK(peer_text{"3"}.number(number, 3, 3).ended());
  CHECK(number == 3);
  CHECK_FALSE(peer_text{"2"}.number(number, 3, 5).good());
  CHECK_FALSE(peer_text{"6"}.number(number, 3, 5).good());
  CHECK(number == 3);
  std::string_view word;
  CHECK(peer_text{"ab: 12\nrest"}.skip("ab: ").number(number).until('\n', word).skip("rest").ended());
  CHECK(number == 12);
  CHECK(word.empty());
  CHECK(peer_text{"one\n"}.until('\n', word).ended());
  CHECK(word == "one");
  CHECK_FALSE(peer_text{"one"}.until('\n', word).good());
  CHECK_FALSE(peer_text{"ab"}.skip("abc").good());
  CHECK_FALSE(peer_text{"x12"}.skip("y").number(number).good());  // nothing is read after what was not found
  CHECK(number == 12);
  CHECK(peer_text{"x"}.at('x'));
  CHECK_FALSE(peer_text{""}.at('x'));
  CHECK_FALSE(peer_text{"x"}.ended());
  CHECK(peer_text{""}.ended());
}
