// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <type_traits>

#include "orrery/detail/function_ref.hpp"
#include "orrery/schedule/block.hpp"

namespace orrery {

/// Some heads of a call's results on this rank, for all its tokens. Forward: out and lse of query heads. Backward:
/// grad_q of query heads; grad_k and grad_v of key heads.
struct output_part {
  orrery::schedule::side side;
  std::int64_t first_head;
  std::int64_t heads;
};

/// Refers to a callable that takes an `output_part`, and is called when that part of the results is final; or to none.
/// Where an operator's call only enqueues, the callable is called when the part's last sum has been enqueued: work that
/// it enqueues on the same stream finds the part final.
class output_listener {
 public:
  output_listener() = default;
  template <class Listener>
    requires(!std::same_as<std::remove_cvref_t<Listener>, output_listener> &&
             std::invocable<Listener&, const output_part&>)
  // NOLINTNEXTLINE(google-explicit-constructor): passed as an argument
  output_listener(Listener&& listener)
  noexcept : listener_{listener} {}

  void operator()(const output_part& part) const {
    if (listener_) listener_(part);
  }

 private:
  detail::function_ref<void(const output_part&)> listener_;
};

}  // namespace orrery
