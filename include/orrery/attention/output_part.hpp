// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "orrery/schedule/block.hpp"

namespace orrery {

/// Some heads of a call's results on this rank, for some of its tokens: all, unless the operator cuts shards into
/// chunks, when it tells each chunk's results as soon as they are final. Forward: out and lse of query heads. Backward:
/// grad_q of query heads; grad_k and grad_v of key heads. A chunk may have no tokens.
struct output_part {
  orrery::schedule::side side;
  std::int64_t first_head;
  std::int64_t heads;
  std::int64_t first_token = 0;  ///< by its index in this rank's shard
  std::int64_t tokens = 0;
};

/// Whom to tell that a part of the results is final: a reference to a callable that takes an `output_part`, or nobody.
/// Where a call only enqueues, it is told when the part's last sum has been enqueued: what it enqueues on the same
/// stream finds the part final.
class output_listener {
 public:
  output_listener() = default;
  template <class Listener>
    requires(!std::same_as<std::remove_cvref_t<Listener>, output_listener> &&
             std::invocable<Listener&, const output_part&>)
  output_listener(Listener&& listener)
  noexcept  // NOLINT(google-explicit-constructor): passed as an argument
      : listener_{const_cast<void*>(static_cast<const void*>(std::addressof(listener)))},
        call_{[](void* to, const output_part& part) { (*static_cast<std::remove_reference_t<Listener>*>(to))(part); }} {
  }

  void operator()(const output_part& part) const {
    if (call_ != nullptr) call_(listener_, part);
  }

 private:
  void* listener_ = nullptr;
  void (*call_)(void*, const output_part&) = nullptr;
};

}  // namespace orrery
