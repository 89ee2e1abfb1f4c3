// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The ranges of `nvtx`, as a tool sees them that NVTX finds in the place of a profiler.
#include "orrery/transport/nvtx.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/host/context.hpp"
#include "orrery/run/executor.hpp"
#include "orrery/topology/half_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/topology/topology.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/threads.hpp"

namespace {

using lines = std::vector<std::string>;

/// What this thread's ranges were.
thread_local lines seen;
thread_local std::vector<std::string> started;  // the names of ranges that may overlap, by id

int push(nvtxDomainHandle_t, const nvtxEventAttributes_t* attributes) {
  seen.push_back(std::string{"push "} + attributes->message.ascii);
  return 0;
}
int pop(nvtxDomainHandle_t) {
  seen.emplace_back("pop");
  return 0;
}
nvtxRangeId_t start(nvtxDomainHandle_t, const nvtxEventAttributes_t* attributes) {
  started.emplace_back(attributes->message.ascii);
  seen.push_back("start " + started.back());
  return started.size() - 1;
}
void end(nvtxDomainHandle_t, nvtxRangeId_t id) { seen.push_back("end " + started.at(id)); }

template <class Function>
void replace(NvtxFunctionTable table, int id, Function* by) {
  *table[id] = reinterpret_cast<NvtxFunctionPointer>(by);
}

/// What NVTX calls before its first range.
int attach(NvtxGetExportTableFunc_t tables) {
  const auto* const callbacks = static_cast<const NvtxExportTableCallbacks*>(tables(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned int size = 0;
  if (callbacks == nullptr || callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size) == 0) return 0;
  replace(table, NVTX_CBID_CORE2_DomainRangePushEx, push);
  replace(table, NVTX_CBID_CORE2_DomainRangePop, pop);
  replace(table, NVTX_CBID_CORE2_DomainRangeStartEx, start);
  replace(table, NVTX_CBID_CORE2_DomainRangeEnd, end);
  return 1;
}

[[maybe_unused]] const bool is_attached = [] {
  InitializeInjectionNvtx2_fnptr = attach;
  return true;
}();

/// Nothing is left open, and nested ranges are closed in order.
bool is_balanced(const lines& of) {
  int nested = 0;
  lines open;
  for (const std::string& line : of) {
    if (line.rfind("push ", 0) == 0) ++nested;
    if (line == "pop" && --nested < 0) return false;
    if (line.rfind("start ", 0) == 0) open.push_back(line.substr(6));
    if (line.rfind("end ", 0) == 0) {
      const auto one = std::find(open.begin(), open.end(), line.substr(4));
      if (one == open.end()) return false;
      open.erase(one);
    }
  }
  return nested == 0 && open.empty();
}

/// An interaction that does nothing, and throws in its n-th tile.
struct throwing_work {
  static constexpr std::array operands{orrery::schedule::side::query, orrery::schedule::side::key};
  using context = orrery::host_context;

  int tiles_left = -1;

  [[nodiscard]] static std::int64_t operand_bytes(int, const orrery::schedule::block&) { return 8; }
  [[nodiscard]] static std::int64_t partial_bytes(const orrery::schedule::block&) { return 8; }
  void prepare(const context&) const {}
  void pack(const context&, int, const orrery::schedule::block&, std::byte* to) const {
    std::fill_n(to, 8, std::byte{});
  }
  void interact(const context&, std::span<const orrery::detail::tile_block>,
                std::span<const orrery::detail::tile_block>) {
    if (tiles_left-- == 0) throw std::runtime_error{"no tile"};
  }
  void merge(const context&, const orrery::schedule::block&, std::byte*, const std::byte*, bool) const {}
  void finish(const context&, const orrery::schedule::block&) const {}
};

/// The ranges of rank 0 of two, of a ring's forward; of rank 1, too, if it is `other`.
lines of_a_call(int tiles_before_it_throws, lines* other = nullptr) {
  lines of_first;
  orrery::threads::run(2, [&](auto& on) {
    seen.clear();
    started.clear();
    orrery::nvtx named{on};
    orrery::counted counting{named};  // adaptors forward what a channel observes
    const orrery::program steps = orrery::program_of(orrery::ring{}, on.rank(), 2, orrery::pass::forward);
    throwing_work work{on.rank() == 0 ? tiles_before_it_throws : -1};
    orrery::executor run{counting, steps, work};
    try {
      run.run();
      named.barrier();
    } catch (const std::exception&) {}
    if (on.rank() == 0) of_first = seen;
    if (on.rank() == 1 && other != nullptr) *other = seen;
  });
  return of_first;
}

}  // namespace

TEST_CASE("a call, its exchanges, steps and tiles have ranges, which close in order") {
  const std::string exchange = "key shard 1 from rank 1, key shard 0 to rank 1";
  CHECK(of_a_call(-1) == lines{"push collective", "pop",                                                   //
                               "start forward", "start " + exchange,                                       //
                               "push step 0", "push tile of query shard 0 and key shard 0", "pop", "pop",  //
                               "push step 1", "end " + exchange, "push tile of query shard 0 and key shard 1", "pop",
                               "pop", "push after the last step", "pop", "end forward",  //
                               "push collective", "pop"});
}

TEST_CASE("ranges of exchanges name what they send and what they receive, if they do") {
  for (const int rank : {0, 1, 2, 3}) {
    const orrery::program p = orrery::program_of(orrery::half_ring{}, rank, 4, orrery::pass::forward);
    const orrery::detail::nvtx_names names{p};
    for (int e = 0; e < p.exchanges.size(); ++e) {
      const std::string& name = names.exchanges[static_cast<std::size_t>(e)];
      CAPTURE(name);
      CHECK((name.find(" to rank ") != std::string::npos) == (p.exchanges[e].sent.count > 0));
      CHECK((name.find(" from rank ") != std::string::npos) == (p.exchanges[e].received.count > 0));
    }
  }
}

TEST_CASE("all ranges are closed when a step throws, on the rank that throws and on the others") {
  for (const int tile : {0, 1}) {
    lines other;
    const lines of_first = of_a_call(tile, &other);
    INFO("tile ", tile);
    CHECK(is_balanced(of_first));
    CHECK(is_balanced(other));
    CHECK(of_first.back() == "end forward");
    const auto begins = [&](int step) {
      return std::find(of_first.begin(), of_first.end(), "push step " + std::to_string(step)) != of_first.end();
    };
    CHECK(begins(tile));
    CHECK_FALSE(begins(tile + 1));
  }
}
