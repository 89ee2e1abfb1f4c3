// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#include "orrery/detail/initializer_text.hpp"

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/attention/shape.hpp"
#include "orrery/predict/traffic.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/mpi_options.hpp"
#include "orrery/transport/nccl_options.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/transport/traced.hpp"

namespace initializer_text_test {

// What is printed is what was compiled.
#define CHECK_PRINTS(type, ...) CHECK(to_string(type __VA_ARGS__) == #__VA_ARGS__)

using namespace orrery;  // as the printed initialisers need
using detail::initializer_text;

TEST_CASE("shapes print as they are written") {
  CHECK_PRINTS(attention_shape, {.length = 65536, .query_heads = 32, .key_heads = 8, .head_dim = 128});
  CHECK_PRINTS(attention_shape, {.length = 0, .head_dim = 0});
  CHECK_PRINTS(attention_shape, {.batch = 2,
                                 .length = 9,
                                 .query_heads = 4,
                                 .key_heads = 2,
                                 .head_dim = 8,
                                 .value_dim = 6,
                                 .key_length = 7,
                                 .scale = 0.25,
                                 .circulate = pass::circulate_queries,
                                 .operand_messages = operand_messages::per_tensor,
                                 .forward_only = true});
  const attention_shape shape{.length = 20, .query_heads = 3, .head_dim = 4};
  CHECK(to_string(shape.completed()) ==
        "{.length = 20, .query_heads = 3, .key_heads = 3, .head_dim = 4, .value_dim = 4, .key_length = 20, .scale = "
        "0.5}");
}

TEST_CASE("options print as they are written, without their defaults") {
  CHECK_PRINTS(threads::options, {});
  CHECK_PRINTS(threads::options, {.deadline = 0.5, .threads_per_rank = 4});
  CHECK_PRINTS(mpi::options, {.deadline = 30, .progress_interval = 0.001, .collectives = mpi::collectives::native});
  CHECK_PRINTS(mpi::options, {.threads_per_rank = 2});
  CHECK_PRINTS(nccl::options,
               {.native_all_gather = false, .native_all_to_all = true, .watchdog_period = 0, .max_ctas = 4});
  CHECK_PRINTS(trace_options, {.events = 100, .file_on_failure = "a \"trace\" in C:\\"});
}

TEST_CASE("traffic prints its numbers") {
  const traffic_report report = traffic(ring{}, 4);
  CHECK(to_string(report) ==
        "{.world = 4, .slices = 1, .pass = pass::forward, .total = 24, .sent = 6, .received = 6, .messages_sent = 3, "
        ".messages_received = 3, .steps = 4, .peak_slots = 2}");
  CHECK(to_string(report.ranks[1]) ==
        "{.blocks_sent = {0, 0, 3, 0}, .blocks_received = {0, 0, 3, 0}, .sent = 6, .received = 6, .messages_sent = 3, "
        ".messages_received = 3, .tiles = 4, .pairs = 4, .steps = 4, .slots = {0, 0, 2, 0}}");
}

TEST_CASE("numbers print as briefly as they can be read again") {
  CHECK(initializer_text::code_of(60.0) == "60");
  CHECK(initializer_text::code_of(0.0002) == "0.0002");
  CHECK(initializer_text::code_of(0.1) == "0.1");
  CHECK(initializer_text::code_of(1.0 / 3) == "0.3333333333333333");
  CHECK(initializer_text::code_of(1e300) == "1e+300");
  CHECK(initializer_text::code_of(std::numeric_limits<double>::infinity()) == "inf");
  CHECK(initializer_text::code_of(std::numeric_limits<std::int64_t>::min()) == "-9223372036854775808");
  CHECK(initializer_text::code_of(std::vector<int>{1, 2}) == "{1, 2}");
  CHECK(initializer_text::code_of(std::array<double, 0>{}) == "{}");
  CHECK(initializer_text::code_of(std::vector<std::string>{"a", "b"}) == "{\"a\", \"b\"}");
}

}  // namespace initializer_text_test
