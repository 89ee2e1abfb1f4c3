// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <stdexcept>
#include <string>

#include "orrery/attention/calls.hpp"
#include "orrery/attention/output_part.hpp"
#include "orrery/attention/shape.hpp"
#include "orrery/attention/tile.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery {

/// A forward whose operands come one after the other (see `attention::begin_forward`). It is over when `finish` has
/// returned or thrown; the operator can then be used again, whether this handle is still there or not. Destroyed before
/// `finish` was called, it makes the call fail on all ranks, as the destruction of its operator does; after the latter,
/// each call on it throws `std::logic_error`.
template <class Kernel>
class started_forward {
 public:
  using storage = typename Kernel::storage;
  using log_sum_exp = detail::log_sum_exp_of<storage>;

  started_forward(detail::attention_calls<Kernel>& calls, const detail::call_views& views,
                  const detail::expected_view& q, const detail::expected_view& k, const detail::expected_view& v,
                  const tensor_view<storage>& out, const row_view<log_sum_exp>& lse)
      : calls_{&calls}, views_{views}, q_{q}, k_{k}, v_{v} {
    calls.begin_forward(out, lse);
    calls.forward_under_way = &calls_;
  }
  started_forward(const started_forward&) = delete;
  started_forward& operator=(const started_forward&) = delete;
  ~started_forward() {
    if (calls_ != nullptr) calls_->leave_forward();
  }

  /// The three are called in this order, each as soon as its tensor is there; all keep their place until `finish` has
  /// returned. Each packs what must leave, and posts it. They throw `std::invalid_argument` for a view that does not
  /// fit or shares memory with an output (another may be given then), `std::logic_error` in another order and if the
  /// operator is gone, and `transport_error` if a peer has failed.
  void queries(const tensor_view<const storage>& q) {
    call(0, &q_, q, [&] { calls_->give_queries(q); });
  }
  void keys(const tensor_view<const storage>& k) {
    call(1, &k_, k, [&] { calls_->give_keys(k); });
  }
  void values(const tensor_view<const storage>& v) {
    call(2, &v_, v, [&] { calls_->give_values(v); });
  }

  /// For work that takes long between these calls: lets what is under way move on, where the transport needs the
  /// processor for that (MPI does, threads do not). Throws `std::logic_error` if the operator is gone.
  void progress() {
    if (calls_ == nullptr && next_ >= finished) return;  // this forward is over
    expect_operator("progress");
    calls_->progress();
  }

  /// Computes; out and lse are then complete. `on_final` is called with each `output_part` as soon as it is final,
  /// while others are still under way: once for each slice into which the topology cuts the heads. Throws as `forward`
  /// does, and `std::logic_error` if the operator is gone.
  void finish(const output_listener& on_final = {}) {
    call(3, nullptr, {}, [&] { calls_->finish_forward(on_final); });
  }

 private:
  static constexpr int finished = 4;
  static constexpr int failed = 5;
  static constexpr const char* names[] = {"queries", "keys", "values", "finish"};

  /// The call of this number: with a view that is expected to fit, unless there is none.
  template <class Give>
  void call(int number, const detail::expected_view* expected, const tensor_view<const storage>& view,
            const Give& give) {
    expect(number);
    expect_operator(names[number]);
    if (expected != nullptr) views_.reads(*expected, view);
    next_ = failed;
    try {
      give();
    } catch (...) {
      calls_->end_forward();  // the executor has told the other ranks
      throw;
    }
    next_ = number + 1;
    if (next_ == finished) calls_->end_forward();
  }

  void expect(int number) const {
    if (next_ == number) return;
    throw std::logic_error{std::string{"orrery: attention::begin_forward: "} + names[number] +
                           " was called, expected " +
                           (next_ < finished ? names[next_] : "no more, since this forward is over") +
                           "; call queries, keys, values and finish, in this order"};
  }

  void expect_operator(const char* name) const {
    if (calls_ != nullptr) return;
    throw std::logic_error{std::string{"orrery: attention::begin_forward: "} + name +
                           " was called, but the operator that began this forward was destroyed or assigned to; keep "
                           "the operator until finish has returned"};
  }

  detail::attention_calls<Kernel>* calls_;  // null: this forward is over, or its operator is gone
  detail::call_views views_;
  detail::expected_view q_, k_, v_;
  int next_ = 0;
};

}  // namespace orrery
