// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/transport/detail/collective_signature.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/tensor/float16.hpp"
#include "orrery/transport/transport.hpp"

namespace {

using orrery::detail::collective_call;
using orrery::detail::collective_signature;
using orrery::detail::compare_signatures;
using orrery::detail::element_type;

TEST_CASE("collective_signature: serialize and parse") {
  for (int call = 0; call <= static_cast<int>(collective_call::recorder); ++call) {
    const collective_signature one{static_cast<collective_call>(call), element_type::of<double>(),
                                   std::int64_t{1} << 62, 0xfedcba9876543210};
    const auto bytes = one.serialize();
    collective_signature read;
    REQUIRE(collective_signature::parse(bytes, read));
    CHECK(read == one);
    CHECK(read.serialize() == bytes);
  }
}

TEST_CASE("collective_signature: parse accepts nothing but what serialize writes") {
  const auto good = collective_signature::sum<float>(5, 7).serialize();
  collective_signature read;
  for (std::size_t length = 0; length < good.size(); ++length) {
    CHECK_FALSE(collective_signature::parse(std::span{good}.first(length), read));
  }
  int accepted = 0;
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      auto changed = good;
      changed[at] = static_cast<std::byte>(value);
      if (!collective_signature::parse(changed, read)) continue;
      ++accepted;
      CHECK(read.serialize() == changed);
    }
  }
  // 6 calls, 5 kinds, any digits (1), bytes (4), count (8, of which one has 7 bits) and sequence (8), and the 10 bytes
  // that have one value.
  CHECK(accepted == 6 + 5 + 256 + 4 * 256 + 7 * 256 + 128 + 8 * 256 + 9);
}

TEST_CASE("collective_signature: types are distinguished") {
  const std::vector<element_type> types{element_type::of<float>(),
                                        element_type::of<double>(),
                                        element_type::of<long double>(),
                                        element_type::of<std::int32_t>(),
                                        element_type::of<std::uint32_t>(),
                                        element_type::of<std::int64_t>(),
                                        element_type::of<std::uint64_t>(),
                                        element_type::of<std::int8_t>(),
                                        element_type::of<orrery::bfloat16>(),
                                        element_type::of<orrery::float16>(),
                                        element_type::of<std::array<char, 24>>()};
  for (std::size_t a = 0; a < types.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) {
      CHECK_FALSE(types[a] == types[b]);
      CHECK(types[a].name() != types[b].name());
    }
  }
  CHECK(types[0].name() == "float");
  CHECK(types[4].name() == "uint32");
  CHECK(types[8].name() == "bfloat16");
  CHECK(types[9].name() == "float16");
  CHECK(types[10].name() == "a type of 24 bytes");
}

TEST_CASE("collective_signature: what differs, and who calls what") {
  const auto text = [](std::vector<collective_signature> of_ranks) { return compare_signatures(of_ranks).text; };
  const auto sum = collective_signature::sum<float>(4, 2);
  CHECK(text({}).empty());
  CHECK(text({sum}).empty());
  CHECK(text({sum, sum, sum}).empty());
  CHECK(text({sum, {collective_call::barrier, {}, 0, 2}, sum}) ==
        "ranks are in different collective calls: ranks 0, 2 call all_reduce_sum of 4 values of float; rank 1 calls "
        "barrier; let all ranks make the same calls, in one order");
  CHECK(text({sum, collective_signature::sum<float>(4, 3)}) ==
        "ranks are in different collective calls: rank 0 calls all_reduce_sum of 4 values of float as collective call "
        "3; rank 1 calls all_reduce_sum of 4 values of float as collective call 4; let all ranks make the same calls, "
        "in one order");
  CHECK(text({sum, sum, collective_signature::sum<double>(2, 2)}) ==
        "ranks give different values to one collective call: ranks 0, 1 call all_reduce_sum of 4 values of float; "
        "rank 2 calls all_reduce_sum of 2 values of double; give values of one type");
  CHECK(text({sum, collective_signature::sum<float>(5, 2)}) ==
        "ranks give different values to one collective call: rank 0 calls all_reduce_sum of 4 values of float; rank 1 "
        "calls all_reduce_sum of 5 values of float; give equally many");
}

TEST_CASE("collective_signature: an argument is refused, a divergence fails the world") {
  std::string failure;
  const auto fail = [&](const std::string& why) { failure = why; };
  const auto sum = collective_signature::sum<float>(4, 2);
  const std::vector<collective_signature> same{sum, sum};
  orrery::detail::require_same_call(same, fail);
  CHECK(failure.empty());
  const std::vector<collective_signature> counts{sum, collective_signature::sum<float>(5, 2)};
  CHECK_THROWS_AS(orrery::detail::require_same_call(counts, fail), std::invalid_argument);
  CHECK(failure.empty());
  const std::vector<collective_signature> calls{sum, {collective_call::open, {}, 0, 2}};
  orrery::detail::require_same_call(calls, fail);
  CHECK(failure.find("rank 1 calls open") != std::string::npos);
}

}  // namespace
