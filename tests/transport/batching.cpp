// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Channels that want to know when they have been given all that is to be posted now: the executor says so, and adaptors
// pass it on.
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "orrery/run/executor.hpp"
#include "orrery/topology/double_ring.hpp"
#include "orrery/topology/ring.hpp"
#include "orrery/transport/adaptor.hpp"
#include "orrery/transport/counted.hpp"
#include "orrery/transport/faulty.hpp"
#include "orrery/transport/threads.hpp"
#include "orrery/transport/traced.hpp"

#include "run/pairs.hpp"

namespace {

/// Threads whose channels write down what they are told.
class noting : public orrery::transport_adaptor<orrery::threads::world, noting> {
 public:
  noting(orrery::threads::world& on, std::string& notes) : transport_adaptor{on}, notes_{&notes} {}

  struct channel {
    orrery::detail::channel_of<orrery::threads::world> inner;
    std::string* notes;

    void begin() { inner.begin(); }
    void post(int exchange) {
      *notes += std::to_string(exchange) + " ";
      inner.post(exchange);
    }
    void posted() { *notes += "| "; }
    void await(int exchange) { inner.await(exchange); }
    [[nodiscard]] auto context() const { return inner.context(); }
  };
  [[nodiscard]] channel open(const orrery::program& p, std::vector<orrery::exchange_pieces> pieces) {
    return {world().open(p, std::move(pieces)), notes_};
  }

 private:
  std::string* notes_;
};

}  // namespace

TEST_CASE("posted() is called after consecutive posts, through every adaptor") {
  static_assert(orrery::detail::batching<orrery::detail::channel_of<noting>>);
  static_assert(!orrery::detail::batching<orrery::detail::channel_of<orrery::threads::world>>);
  static_assert(!orrery::detail::batching<orrery::detail::channel_of<orrery::counted<orrery::threads::world>>>);
  for (const bool adapted : {false, true}) {
    std::vector<std::string> notes(4);
    orrery::threads::run(4, [&](auto& on) {
      const auto rank = static_cast<std::size_t>(on.rank());
      noting plain{on, notes[rank]};
      const auto check = [](auto& world) {
        const orrery::program steps =
            orrery::program_of(orrery::double_ring<2>{}, world.rank(), 4, orrery::pass::circulate_keys);
        pairs::work local{{16, 4}, {16, 4}, steps};
        orrery::executor run{world, steps, local};
        run.run();
      };
      if (!adapted) return check(plain);
      orrery::counted counting{plain};
      orrery::faulty failing{counting, {}};
      orrery::traced tracing{failing};
      check(tracing);
    });
    for (int rank = 0; rank < 4; ++rank) {
      // Each step's exchanges, and then the end of them.
      std::string expected;
      int e = 0;
      for (const orrery::schedule::step& now :
           orrery::program_of(orrery::double_ring<2>{}, rank, 4, orrery::pass::circulate_keys).steps) {
        for (int i = 0; i < now.exchanges.count; ++i) expected += std::to_string(e++) + " ";
        if (now.exchanges.count > 0) expected += "| ";
      }
      CHECK(e > 4);
      CHECK(notes[static_cast<std::size_t>(rank)] == expected);
    }
  }
}
