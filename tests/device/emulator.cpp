// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The device on the host: what it computes, and that it sees what a GPU would let pass until it goes wrong.
#include "device/emulator.hpp"

#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/tensor/float16.hpp"

namespace {

using emulator::run_grid;
using orrery::bfloat16;
using orrery::float16;

template <class Work>
struct body {
  Work work;
  void operator()(const emulator::threads& threads) const { work(threads); }
};

/// What a block of 64 threads with 256 bytes of shared memory is blamed for.
template <class Work>
std::string blame(const Work& work) {
  try {
    run_grid<64>(1, 256, body<Work>{work});
  } catch (const emulator::misuse& found) {
    return found.what();
  }
  return "";
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("shared memory and barriers") {
  std::vector<int> got(128, -1);
  run_grid<64>(2, 256, body{[&got = *got.data()](const emulator::threads& t) {
                 t.store(4 * t.thread(), 100 * static_cast<int>(t.block()) + t.thread());
                 t.barrier();
                 (&got)[64 * t.block() + t.thread()] = t.load<int>(4 * (63 - t.thread()));
               }});
  for (int i = 0; i < 128; ++i) CHECK(got[static_cast<std::size_t>(i)] == 100 * (i / 64) + 63 - i % 64);
}

TEST_CASE("misuse of shared memory has a message") {
  CHECK(contains(blame([](const emulator::threads& t) { static_cast<void>(t.load<int>(4 * t.thread())); }),
                 "reads shared memory that nobody has written"));
  CHECK(contains(blame([](const emulator::threads& t) { t.store(8 * t.thread(), 1); }), "256 bytes, accessed at 256"));
  CHECK(contains(blame([](const emulator::threads& t) { t.store(2 * t.thread(), 1); }), "misaligned"));
  CHECK(contains(blame([](const emulator::threads& t) {
                   t.store(4 * t.thread(), 1);
                   static_cast<void>(t.load<int>(4 * (t.thread() & ~1)));
                 }),
                 "without a barrier"));
  CHECK(contains(blame([](const emulator::threads& t) {
                   if (t.thread() == 0) t.store(0, 1);
                   t.barrier();
                   static_cast<void>(t.load<int>(0));
                   if (t.thread() == 5) t.store(0, 2);
                 }),
                 "writes what another thread reads, without a barrier"));
  CHECK(contains(blame([](const emulator::threads& t) { t.store(0, t.thread()); }), "writes what thread 0 wrote"));
}

TEST_CASE("threads that diverge have a message") {
  CHECK(contains(blame([](const emulator::threads& t) {
                   if (t.thread() != 7) t.barrier();
                 }),
                 "stands still"));
  const auto diverge = [](const emulator::threads& t) {
    if (t.lane() < 16) {
      static_cast<void>(t.shuffle_xor(1, 1));
    } else {
      static_cast<void>(t.shuffle_xor(1, 1));
    }
  };
  CHECK(contains(blame(diverge), "while others of its warp are in shuffle_xor"));
}

TEST_CASE("copies arrive when they are awaited, and not before") {
  alignas(16) static const float source[68] = {3, 1, 4, 1, 5};
  std::vector<float> got(64);
  run_grid<64>(1, 512, body{[&got = *got.data()](const emulator::threads& t) {
                 if (t.thread() < 8) t.copy_async(16 * t.thread(), source + 4 * t.thread(), t.thread() != 1);
                 t.commit_copies();
                 if (t.thread() < 8) t.copy_async(256 + 16 * t.thread(), source, true);
                 t.commit_copies();
                 t.wait_for_copies<1>();
                 t.barrier();
                 if (t.thread() < 32) (&got)[t.thread()] = t.load<float>(4 * t.thread());
                 t.wait_for_copies<0>();
               }});
  CHECK(got[2] == 4);
  CHECK(got[4] == 0);  // source[4] is 5, but that copy was of nothing
  const auto early = [](const emulator::threads& t) {
    if (t.thread() == 0) t.copy_async(0, source, true);
    t.commit_copies();
    t.wait_for_copies<1>();
    if (t.thread() == 0) static_cast<void>(t.load<float>(0));
  };
  CHECK(contains(blame(early), "whose copy has not been waited for"));
  CHECK(contains(blame([](const emulator::threads& t) {
                   if (t.thread() == 0) t.copy_async(0, source + 1, true);
                 }),
                 "misaligned"));
  CHECK(contains(blame([](const emulator::threads& t) {
                   if (t.thread() == 0) t.copy_async(0, source, true);
                 }),
                 "on their way"));
}

TEST_CASE_TEMPLATE("a product of matrices by way of shared memory, as loaded by rows and transposed", T, bfloat16,
                   float16) {
  // c = a b, with a 16 × 16, b 16 × 8; b once as its rows (transposed on loading), once as its columns.
  float a[16][16], b[16][8];
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) a[i][j] = static_cast<float>((i * 5 + j * 3) % 11 - 5);
    for (int j = 0; j < 8; ++j) b[i][j] = static_cast<float>((i * 7 + j * 2) % 13 - 6);
  }
  struct work {
    const float (*a)[16];
    const float (*b)[8];
    float* c;
    bool by_rows;
    void operator()(const emulator::threads& t) const {
      constexpr int at_b = 512;
      for (int i = t.lane(); i < 256; i += 32) t.store(2 * i, T{a[i / 16][i % 16]});
      for (int i = t.lane(); i < 128; i += 32) {
        t.store(at_b + 2 * i, by_rows ? T{b[i / 8][i % 8]} : T{b[i % 16][i / 16]});
      }
      t.barrier();
      std::uint32_t a_words[4], b_words[4];
      t.load_matrices(a_words, t.lane() % 16 * 32 + t.lane() / 16 * 16);
      if (by_rows) {
        t.load_transposed(b_words, at_b + t.lane() % 16 * 16);
      } else {
        t.load_matrices(b_words, at_b + t.lane() % 8 * 32 + t.lane() / 8 % 2 * 16);
      }
      float sum[4] = {1, 1, 1, 1};
      t.multiply_add<T>(sum, a_words, b_words[0], b_words[1]);
      for (int i = 0; i < 4; ++i) c[(t.lane() / 4 + i / 2 * 8) * 8 + t.lane() % 4 * 2 + i % 2] = sum[i];
    }
  };
  for (const bool by_rows : {false, true}) {
    float c[128];
    run_grid<32>(1, 768, work{a, b, c, by_rows});
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        float expected = 1;
        for (int k = 0; k < 16; ++k) expected += a[i][k] * b[k][j];
        CHECK(c[i * 8 + j] == expected);
      }
    }
  }
}

TEST_CASE("a device that is too old or too small has a message") {
  const orrery::detail::device_limits old{1, 75, 64 * 1024};
  CHECK_THROWS_WITH_AS(old.require("device_flash<bfloat16>", {80, 0}),
                       "orrery: device 1 has compute capability 7.5, but kernel device_flash<bfloat16> needs 8.0 or "
                       "newer; orrery::device_reference runs on every device",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(old.require("device_flash<bfloat16>", {70, 65537}),
                       "orrery: device 1 has 65536 bytes of shared memory for a block, but kernel "
                       "device_flash<bfloat16> needs 65537 for these head dimensions; orrery::device_reference needs "
                       "none",
                       std::invalid_argument);
  old.require("device_flash<bfloat16>", {75, 65536});
  CHECK_THROWS_AS(orrery::detail::device_limits::require_grid(std::int64_t{1} << 31), std::invalid_argument);
  orrery::detail::device_limits::require_grid((std::int64_t{1} << 31) - 1);
}
