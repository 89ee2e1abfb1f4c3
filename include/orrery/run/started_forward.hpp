// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>

#include "orrery/kernel/view.hpp"
#include "orrery/run/attention_calls.hpp"
#include "orrery/run/attention_shape.hpp"
#include "orrery/run/output_part.hpp"

namespace orrery {

/// A forward whose operands come one after the other (see `attention::begin_forward`). Gone before it is finished, it
/// makes the call fail on all ranks.
template <class Kernel>
class started_forward {
 public:
  using storage = typename Kernel::storage;
  using accumulator = typename Kernel::accumulator;

  started_forward(attention_calls<Kernel>& calls, const call_views& views, const expected_view& q,
                  const expected_view& k, const expected_view& v, const tensor_view<storage>& out,
                  const row_view<accumulator>& lse)
      : calls_{&calls}, views_{views}, q_{q}, k_{k}, v_{v} {
    calls.begin_forward(out, lse);
    calls.forward_under_way = true;
  }
  started_forward(const started_forward&) = delete;
  started_forward& operator=(const started_forward&) = delete;
  ~started_forward() {
    calls_->forward_under_way = false;
    if (next_ == finished) return;
    try {
      calls_->abandon_forward();
    } catch (...) {  // out of memory: the others have their deadline
    }
  }

  /// The three are called in this order, each as soon as its tensor is there; all keep their place until `finish` has
  /// returned. Each packs what must leave, and posts it. They throw `std::invalid_argument` for a view that does not
  /// fit or shares memory with an output, `std::logic_error` in another order, and `transport_error` if a peer has
  /// failed.
  void queries(const tensor_view<const storage>& q) {
    expect(0);
    views_.reads(q_, q);
    calls_->give_queries(q);
    next_ = 1;
  }
  void keys(const tensor_view<const storage>& k) {
    expect(1);
    views_.reads(k_, k);
    calls_->give_keys(k);
    next_ = 2;
  }
  void values(const tensor_view<const storage>& v) {
    expect(2);
    views_.reads(v_, v);
    calls_->give_values(v);
    next_ = 3;
  }

  /// For work that takes long between these calls: lets what is under way move on, where the transport needs the
  /// processor for that (MPI does, threads do not).
  void progress() { calls_->progress(); }

  /// Computes; out and lse are then complete. `on_final` is called with each `output_part` as soon as it is final,
  /// while others are still under way: once for each slice into which the topology cuts the heads. Throws as `forward`
  /// does.
  void finish(const output_listener& on_final = {}) {
    expect(3);
    next_ = failed;
    calls_->finish_forward(on_final);
    next_ = finished;
  }

 private:
  static constexpr int finished = 4;
  static constexpr int failed = 5;

  void expect(int call) const {
    static constexpr const char* names[] = {"queries", "keys", "values", "finish"};
    if (next_ == call) return;
    throw std::logic_error{std::string{"orrery: attention::begin_forward: "} + names[call] + " was called, expected " +
                           (next_ < finished ? names[next_] : "no more, since this forward is over") +
                           "; call queries, keys, values and finish, in this order"};
  }

  attention_calls<Kernel>* calls_;
  call_views views_;
  expected_view q_, k_, v_;
  int next_ = 0;
};

}  // namespace orrery
