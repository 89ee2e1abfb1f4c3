// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "orrery/device/context.hpp"
#include "orrery/kernel/cudnn/call.hpp"
#include "orrery/kernel/cudnn/mask_rectangles.hpp"
#include "orrery/layout/segment.hpp"

namespace orrery::detail {

/// All that `device_cudnn` knows of an operator's tiles before they are called: the parts of each pair of blocks, and
/// an execution plan for each distinct call.
template <class Engine>
class device_cudnn_calls {
  static_assert(cudnn_engine<Engine>,
                "orrery::device_cudnn plans with cuDNN itself, which is not known here: include "
                "orrery/kernel/device_cudnn_graphs.hpp");

 public:
  /// Calls are cut so that their workspace is at most this, if they can be.
  static constexpr std::int64_t workspace_limit = std::int64_t{1} << 30;

  /// One execution plan's call, of the key heads from `first_key_head` on, counted within the call that was cut.
  struct piece {
    const cudnn_call* call;
    int plan;
    std::int64_t first_key_head;
  };

  /// Returns what the mask lets these positions see of those. Throws as `cudnn_parts_of` does.
  template <class Mask>
  const std::vector<cudnn_part>& expect_parts(const segments& queries, const segments& keys, const Mask& mask,
                                              const std::string& kernel_name) {
    auto [place, is_new] = parts_.try_emplace(key_of(queries, keys));
    if (is_new) place->second = cudnn_parts_of(queries, keys, mask, kernel_name);
    return place->second;
  }
  /// Makes the plans of a call, calling made(call, workspace bytes) for each new one. Throws
  /// `std::invalid_argument` if cuDNN does not have it. Returns how many key heads are computed at a time.
  template <class Made>
  std::int64_t expect(const cudnn_call& call, const Made& made) {
    if (const auto known = calls_.find(call); known != calls_.end()) return known->second.key_heads;
    planned_call now{engine_.plan(call), call.key_heads};
    const std::int64_t workspace = engine_.workspace_bytes(now.plan);
    if (workspace > workspace_limit && call.key_heads > 1) {
      now.key_heads = expect(of_key_heads(call, (call.key_heads + 1) / 2), made);
      if (call.key_heads % now.key_heads != 0) expect(of_key_heads(call, call.key_heads % now.key_heads), made);
    } else {
      made(call, workspace);
    }
    calls_.emplace(call, now);
    return now.key_heads;
  }

  [[nodiscard]] const std::vector<cudnn_part>& parts(const segments& queries, const segments& keys,
                                                     const std::string& kernel_name) const {
    return found(parts_, key_of(queries, keys), kernel_name);
  }
  /// Calls visit(piece) for each plan that the call consists of.
  template <class Visit>
  void for_pieces(const cudnn_call& call, const std::string& kernel_name, const Visit& visit) const {
    const std::int64_t at_a_time = found(calls_, call, kernel_name).key_heads;
    for (std::int64_t first = 0; first < call.key_heads; first += at_a_time) {
      const std::int64_t left = call.key_heads - first;
      const cudnn_call part = of_key_heads(call, left < at_a_time ? left : at_a_time);
      visit(piece{&part, found(calls_, part, kernel_name).plan, first});
    }
  }
  void run(int plan, const device_context& context, const cudnn_tensors& tensors, void* workspace) {
    engine_.run(plan, context, tensors, workspace);
  }

 private:
  using positions_key = std::array<std::int64_t, 16>;

  /// A distinct call: its execution plan; or, if that would need too much workspace, how many key heads at a time.
  struct planned_call {
    int plan = -1;
    std::int64_t key_heads = 0;
  };

  static positions_key key_of(const segments& queries, const segments& keys) noexcept {
    positions_key key{};
    std::size_t at = 0;
    for (const segments* side : {&queries, &keys}) {
      for (int i = 0; i < 2; ++i) {
        const segment piece = i < side->size() ? (*side)[i] : segment{0, 0, 0, 0};
        for (const std::int64_t number : {piece.begin, piece.count, piece.run, piece.stride}) key[at++] = number;
      }
    }
    return key;
  }
  static cudnn_call of_key_heads(cudnn_call call, std::int64_t key_heads) {
    if (key_heads == call.key_heads) return call;
    call.query_heads = call.query_heads / call.key_heads * key_heads;
    call.key_heads = key_heads;
    if (!call.in_place) call.pack_results();
    return call;
  }

  template <class Map>
  static const auto& found(const Map& map, const typename Map::key_type& key, const std::string& kernel_name) {
    const auto place = map.find(key);
    if (place == map.end()) {
      throw std::logic_error{"orrery: kernel " + kernel_name +
                             " is called for a tile that it was not told of when its operator was made; its calls are "
                             "those of an operator, made by orrery::attention"};
    }
    return place->second;
  }

  Engine engine_;
  std::map<positions_key, std::vector<cudnn_part>> parts_;
  std::map<cudnn_call, planned_call> calls_;
};

}  // namespace orrery::detail
