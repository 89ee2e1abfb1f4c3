// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The library under -Ofast, for finite inputs: against the oracle, in a program that holds the same functions compiled
// with and without, with and without flushing of denormal numbers to zero. CMake links it twice: each order of the two
// units gives the linker other copies of inline functions to keep.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "orrery/mask/causal.hpp"

#include "fast_math/results.hpp"
#include "support/oracle.hpp"

namespace {

using fast_math::call;
using fast_math::element;
using fast_math::unit;
using orrery::instruction_set;

/// Makes the processor flush denormal numbers to zero, or not: a program that is linked with -Ofast begins so.
void flush_denormals(bool flushed) {
#if defined(__SSE2__)
  constexpr unsigned both = 0x8040;  // results and operands
  _mm_setcsr(flushed ? _mm_getcsr() | both : _mm_getcsr() & ~both);
#elif defined(__aarch64__)
  constexpr std::uint64_t both = 1U << 24;
  std::uint64_t control = 0;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  control = flushed ? control | both : control & ~both;
  __asm__ volatile("msr fpcr, %0" : : "r"(control));
#else
  static_cast<void>(flushed);
#endif
}

/// Calls body(unit, set) for both units, with and without flushing, and every instruction set of this machine.
template <class Body>
void for_each_way(const Body& body) {
  for (const bool flushed : {false, true}) {
    for (const bool relaxed : {false, true}) {
      for (const auto set : {instruction_set::baseline, instruction_set::avx2, instruction_set::avx512}) {
        if (set > orrery::widest_instruction_set()) continue;
        INFO("called from the ", relaxed ? "relaxed" : "strict", " unit, denormals flushed: ", flushed,
             ", instruction set ", static_cast<int>(set));
        flush_denormals(flushed);
        body(relaxed ? fast_math::relaxed() : fast_math::strict(), set);
        flush_denormals(false);
      }
    }
  }
}

void check(const char* name, const std::vector<double>& expected, const std::vector<double>& got, double tolerance) {
  const oracle::difference d = oracle::compare(expected, got);
  INFO(name, ": ", d.text());
  CHECK(d.error <= tolerance);
}

void check_forward(const oracle::answer& expected, const oracle::answer& got, double tolerance) {
  check("out", expected.out, got.out, tolerance);
  check("lse", expected.lse, got.lse, tolerance);
}

void check_all(const oracle::answer& expected, const oracle::answer& got, double tolerance) {
  check_forward(expected, got, tolerance);
  check("grad_q", expected.grad_q, got.grad_q, tolerance);
  check("grad_k", expected.grad_k, got.grad_k, tolerance);
  check("grad_v", expected.grad_v, got.grad_v, tolerance);
}

/// Values that are exact in the type; for the 16-bit types, whose conversions are under test, multiples of 1/64.
[[nodiscard]] oracle::problem problem_of(element type, const oracle::shape& shape, double magnitude = 1) {
  oracle::problem p = oracle::random_problem<float>(shape, 7, magnitude);
  if (type == element::float32 || type == element::float64) return p;
  for (std::vector<double>* values : {&p.q, &p.k, &p.v, &p.grad_out}) {
    for (double& value : *values) value = std::round(value * 64) / 64;
  }
  return p;
}

/// Of sums, which all types but double have in float.
[[nodiscard]] double tolerance_of(const fast_math::kernel& kernel) {
  return kernel.reference || kernel.element == element::float64 ? oracle::tolerance<double> : oracle::tolerance<float>;
}

/// All keys are visible; some; none to the first 40 queries; none.
constexpr std::int64_t offsets[] = {1000, 33, -40, -1000};

constexpr element elements[] = {element::float32, element::float64, element::bfloat16, element::float16};

/// The value of the bits of a 16-bit type, by its definition.
double value_of(std::uint16_t bits, element type) {
  const int fraction_bits = type == element::float16 ? 10 : 7;
  const int bias = type == element::float16 ? 15 : 127;
  const double sign = (bits & 0x8000u) != 0 ? -1 : 1;
  const int exponent = (bits & 0x7fff) >> fraction_bits;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  if (exponent == 2 * bias + 1) return sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

}  // namespace

TEST_CASE("kernels: forward and backward, all element types, masks that hide rows, shards") {
  const oracle::shape shape{1, 97, 130, 4, 2, 24, 17, 0.3};
  for (const element type : elements) {
    const oracle::problem p = problem_of(type, shape);
    for (const std::int64_t offset : offsets) {
      const oracle::answer expected = oracle::solve(p, orrery::causal{offset});
      for (const int shards : {1, 2}) {
        for_each_way([&](const unit& by, instruction_set set) {
          const call how{{type, false, set}, offset, shards, shards + 1};
          INFO("element ", static_cast<int>(type), ", offset ", offset, ", shards ", shards);
          check_all(expected, by.attention(p, how), tolerance_of(how.kernel));
        });
      }
    }
  }
}

TEST_CASE("reference: forward and backward, masks that hide rows, shards") {
  const oracle::problem p = problem_of(element::float64, {1, 97, 130, 4, 2, 24, 17, 0.3});
  for (const std::int64_t offset : offsets) {
    const oracle::answer expected = oracle::solve(p, orrery::causal{offset});
    for_each_way([&](const unit& by, instruction_set) {
      const call how{{element::float64, true}, offset, 2, 3};
      INFO("offset ", offset);
      check_all(expected, by.attention(p, how), tolerance_of(how.kernel));
    });
  }
}

TEST_CASE("scores of several hundred, and weights that underflow") {
  const oracle::shape shape{1, 80, 120, 1, 1, 32, 16, 1.0};
  for (const element type : {element::float32, element::float64}) {
    for (const double magnitude : {6.0, 30.0, 300.0}) {
      const oracle::problem p = problem_of(type, shape, magnitude);
      const oracle::answer expected = oracle::solve(p, orrery::causal{10});
      for_each_way([&](const unit& by, instruction_set set) {
        const call how{{type, false, set}, 10, 1, 2};
        INFO("element ", static_cast<int>(type), ", magnitude ", magnitude);
        check_all(expected, by.attention(p, how), tolerance_of(how.kernel) * 32 * magnitude * magnitude);
      });
    }
  }
}

TEST_CASE("partials merge, also those of rows that have seen nothing") {
  const oracle::shape shape{2, 60, 80, 2, 2, 8, 24, 0.5};
  for (const bool reference : {false, true}) {
    for (const element type : {element::float32, element::float64}) {
      const oracle::problem p = problem_of(type, shape);
      for (const std::int64_t offset : offsets) {
        const oracle::answer expected = oracle::solve(p, orrery::causal{offset});
        for_each_way([&](const unit& by, instruction_set set) {
          const call how{{type, reference, set}, offset};
          INFO("element ", static_cast<int>(type), ", offset ", offset, ", reference ", reference);
          check_forward(expected, by.merged(p, how), tolerance_of(how.kernel));
        });
      }
    }
  }
}

TEST_CASE("operators on threads") {
  const oracle::problem p = problem_of(element::float32, {1, 50, 50, 2, 1, 16, 8, 0.25});
  for (const std::int64_t offset : {1000, 0, -20}) {
    const oracle::answer expected = oracle::solve(p, orrery::causal{offset});
    for (const bool flushed : {false, true}) {
      for (const bool relaxed : {false, true}) {
        for (const auto& on : {std::pair{"ring", 2}, {"ring", 3}, {"concentric", 4}, {"wallfacer", 4}}) {
          INFO(on.first, " on ", on.second, " ranks, offset ", offset, ", relaxed ", relaxed, ", flushed ", flushed);
          flush_denormals(flushed);
          const unit by = relaxed ? fast_math::relaxed() : fast_math::strict();
          const oracle::answer got = by.operated(p, offset, on.first, on.second);
          flush_denormals(false);
          check_all(expected, got, oracle::tolerance<float>);
        }
      }
    }
  }
}

TEST_CASE("powers of two: within 3 units in the last place, and exactly zero far below") {
  for (const bool in_float : {true, false}) {
    const double floor = in_float ? -100 : -1000;
    std::vector<double> y;
    for (int i = 0; i <= 4000; ++i) {
      const auto to = [&](double value) {
        y.push_back(in_float ? static_cast<double>(static_cast<float>(value)) : value);
      };
      to(floor + i / 4000.0 * -2 * floor);
      to(-1 + i / 2000.0);
      to(-std::ldexp(1.0 + i / 4000.0, i % 60 - 50));
    }
    for (const double exponent : {0x1p7, 0x1p10, 0x1p11, 0x1p22, 0x1p23, 0x1p31, 0x1p51, 0x1p63, 0x1p100, 0x1p127}) {
      y.push_back(-exponent);
      y.push_back(-exponent * 1.5);
    }
    for_each_way([&](const unit& by, instruction_set set) {
      const std::vector<double> powers = by.powers(y, in_float, set);
      double worst = 0;
      int wrong_zeros = 0;
      for (std::size_t i = 0; i < y.size(); ++i) {
        if (y[i] < floor) {
          wrong_zeros += powers[i] == 0 ? 0 : 1;
        } else {
          const double error = std::abs(powers[i] / std::exp2(y[i]) - 1);
          worst = error <= worst ? worst : error;  // NaN is the worst
        }
      }
      INFO("in float: ", in_float);
      CHECK(wrong_zeros == 0);
      CHECK(worst <= 3 * (in_float ? 0x1p-23 : 0x1p-52));
    });
  }
}

TEST_CASE("16-bit types: conversions round to the nearest, ties to even, and widen exactly") {
  for (const element type : {element::float16, element::bfloat16}) {
    const std::uint16_t infinity = type == element::float16 ? 0x7c00 : 0x7f80;
    const std::uint16_t first = type == element::float16 ? 0 : 0x80;  // denormal floats may be flushed
    std::vector<std::uint16_t> bits;
    std::vector<double> exact, ties, above, below;
    std::vector<std::uint16_t> even, next;
    for (std::uint16_t one = first; one < infinity - 1; ++one) {
      bits.push_back(one);
      next.push_back(static_cast<std::uint16_t>(one + 1));
      even.push_back(static_cast<std::uint16_t>(one + one % 2));
      const double low = value_of(one, type);
      const double tie = (low + value_of(next.back(), type)) / 2;
      exact.push_back(low);
      ties.push_back(tie);
      above.push_back(std::nextafter(tie, 1e300));
      below.push_back(std::nextafter(tie, 0.0));
    }
    for_each_way([&](const unit& by, instruction_set set) {
      INFO("float16: ", type == element::float16);
      CHECK(by.widened(bits, type, set) == exact);
      CHECK(by.narrowed(exact, type, true) == bits);
      CHECK(by.narrowed(exact, type, false) == bits);
      CHECK(by.narrowed(ties, type, true) == even);
      CHECK(by.narrowed(ties, type, false) == even);
      CHECK(by.narrowed(above, type, false) == next);
      CHECK(by.narrowed(below, type, false) == bits);
      CHECK(by.narrowed({1e6, -1e6, 3e38, 1e39, -1e300}, type, false) ==
            (type == element::float16 ? std::vector<std::uint16_t>{0x7c00, 0xfc00, 0x7c00, 0x7c00, 0xfc00}
                                      : by.narrowed({1e6, -1e6, 3e38, 1e300, -1e39}, type, false)));
      CHECK(by.narrowed({1e39, -1e300}, type, false) ==
            std::vector<std::uint16_t>{infinity, static_cast<std::uint16_t>(infinity | 0x8000)});
    });
  }
}
