// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "orrery/attention/tile.hpp"
#include "orrery/device/context.hpp"
#include "orrery/device/gpu.cuh"
#include "orrery/device/tensor_map.hpp"
#include "orrery/kernel/cuda/backend.cuh"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/kernel/cuda/flash_backward.cuh"
#include "orrery/kernel/cuda/flash_forward.cuh"
#include "orrery/kernel/cuda/wgmma/backward.cuh"
#include "orrery/kernel/cuda/wgmma/forward.cuh"
#include "orrery/mask/full.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/float16.hpp"

namespace orrery {

/// By which instructions `device_flash` multiplies matrices.
enum class device_instructions {
  mma_sync,  ///< a warp's, of compute capability 8.0 and newer
  wgmma,     ///< a warpgroup's, with tensor copies: of compute capability 9.0 alone, and of the target sm_90a
};

}  // namespace orrery

namespace orrery::detail {

/// The best that `device_flash` uses by default. wgmma is to be asked for, since it has not run on a GPU yet.
inline constexpr device_instructions default_device_instructions = device_instructions::mma_sync;

}  // namespace orrery::detail

namespace orrery {

/// The fast attention kernel for CUDA devices of compute capability 8.0 and newer: blocked online softmax on the tensor
/// cores, forward and backward.
///
/// T is bfloat16 or float16, as storage: products are of T (probabilities are rounded to it before they weigh values),
/// sums, log-sum-exp and the partials that travel are float. Head dimensions up to `largest`, of q and k and of v
/// separately; each is padded to the next of 64, 96, 128, 192 (of q and k; v: 128), 256 in shared memory only, so those
/// are fastest. What is never called need not be compiled: a smaller `largest` compiles fewer kernels.
///
/// Calls enqueue kernels on the context's stream and return; nothing waits or is allocated, and calls can be captured
/// into a graph. The same call gives the same bits. Tensors whose addresses and strides are multiples of 16 bytes are
/// read fastest. Masks are as for `device_reference`; tiles that `classify` calls `none` cost nothing, and only `some`
/// are tested pair by pair.
///
/// Tokens that the mask hides may hold anything: a query that sees no key of a call, or a key that no query of it sees
/// (padding, as memory was before), changes no bit of the call's results, and its own are those of nothing. An infinity
/// or NaN in a value that is seen reaches the outputs of all queries that see it, and may reach that of a query that
/// shares a tile (up to 128 tokens of a segment) with these although it does not see it, or gives it no weight: 0 times
/// NaN is NaN. `device_reference` keeps to the pairs.
///
/// A score that is NaN or +infinity, or overflows to it, makes out, log-sum-exp and gradient of its query NaN, and the
/// gradients of the keys and values that the query sees, in whatever tile and call. A score of -infinity, or that
/// overflows to it, has the weight 0 and the gradient 0; a query that sees only such scores is one that sees nothing.
///
/// Gradients keep to the pairs: what an infinite or NaN token holds reaches those gradients that its pairs with a
/// weight reach, through log-sum-exp and delta, too, and no others. Sums that products have made NaN are formed
/// again, for up to 128 tokens at once, which takes several times as long; so does a backward whose gradients are all
/// NaN.
///
/// The backward is deterministic and needs no workspace: one kernel sums grad_q, another grad_k and grad_v (two at head
/// dimensions 192 and 256). That makes 7 products (8 there) of what one kernel would do by 5.
///
/// Errors of sums over tokens do not grow with their number: sums of weights are compensated, and those of products go
/// to memory every 8192 tokens. A shard has fewer than 2^31 - 256 tokens.
///
/// `limit` is the best instructions that are used. With `wgmma` they are, forward and backward, where the device has
/// compute capability 9.0, the program is compiled for sm_90a, a mask's object is small (a launch's arguments, tensor
/// maps among them, have 4096 bytes: about 400 are left for it), and addresses and strides of q, k, v and grad_out are
/// multiples of 16 bytes (see `tensor_box`); otherwise, those of mma.sync. Results differ by rounding.
///
/// `Policies` chooses tiles, threads and registers: see `device_flash_policies`. `policies()` prints them.
/// **wgmma has been compiled, and tested lane by lane on an emulated device, but has not run on a GPU yet.**
template <class T, int largest = 256, class Device = detail::gpu,
          device_instructions limit = detail::default_device_instructions, class Policies = device_flash_policies>
struct device_flash : detail::device_backend<Device> {
  static_assert(std::same_as<T, bfloat16> || std::same_as<T, float16>,
                "orrery::device_flash stores orrery::bfloat16 or orrery::float16; for other element types use "
                "orrery::device_reference");
  static_assert(largest >= 64 && largest <= 256, "orrery::device_flash is for head dimensions up to 64 to 256");

  using storage = T;
  using accumulator = float;
  using context = device_context;

  static constexpr std::int64_t max_head_dim = largest;

  template <mask Mask>
  static constexpr bool supports = detail::is_mask_for_devices<Mask>();

  [[nodiscard]] static std::string name() {
    return "device_flash<" + detail::element_name<T>() + (limit == device_instructions::wgmma ? ", wgmma>" : ">");
  }

  /// The policies of the kernels that these head dimensions take, as designated initialisers, a line for each:
  /// "forward: {.warps = 4, ...}". Throws `std::invalid_argument` if a head dimension is too large.
  [[nodiscard]] static std::string policies(std::int64_t key_dim, std::int64_t value_dim) {
    std::string text;
    by_dims(key_dim, value_dim, [&]<int key, int value>(dims<key, value>) {
      text = "forward: " + policy_of<detail::device_flash_forward<T, full, key, value, Policies>>();
      with_gradients<(key + value <= 320)>([&]<device_gradient... gradient>(gradients<gradient>...) {
        ((text += "backward: " + policy_of<detail::device_flash_backward<T, full, key, value, gradient, Policies>>()),
         ...);
      });
      if constexpr (limit == device_instructions::wgmma) {
        text += "forward by warpgroups: " +
                policy_of<detail::device_flash_wgmma_forward<T, full, key, columns_of(value), Policies>>();
        constexpr int wide_key = columns_of(key);
        constexpr int wide_value = columns_of(value);
        with_gradients<(wide_key + wide_value <= 256)>([&]<device_gradient... gradient>(gradients<gradient>...) {
          ((text +=
            "backward by warpgroups: " +
            policy_of<detail::device_flash_wgmma_backward<T, full, wide_key, wide_value, gradient, Policies>>()),
           ...);
        });
      }
    });
    return text;
  }

  /// Throws `std::invalid_argument` unless the current device has what a forward and a backward of these head
  /// dimensions need, and `device_error` if there is no device. Operators ask when they are made, and every call does.
  static void require(std::int64_t key_dim, std::int64_t value_dim) {
    by_dims(key_dim, value_dim, [&]<int key, int value>(dims<key, value>) {
      require_bytes(detail::device_flash_forward<T, full, key, value, Policies>::shared_bytes);
      require_bytes(
          detail::device_flash_backward<T, full, key, value, device_gradient::of_queries, Policies>::shared_bytes);
    });
  }

  /// Every query of `queries` meets every key of `keys` that the mask lets it see; (out, lse) accumulate.
  /// Cost: 2 * (dim of k + dim of v) flop per pair of a tile that is not `none`. Throws `std::invalid_argument`, before
  /// anything is enqueued, if a head dimension is too large or the device too old or too small, and `device_error` if
  /// CUDA does not take a kernel.
  template <mask Mask>
  static void forward(const device_context& context, std::span<const forward_queries<T, float>> queries,
                      std::span<const forward_keys<T>> keys, const head_map& heads, float scale, const Mask& mask) {
    if (queries.empty()) return;
    require_tokens(queries);
    require_tokens(keys);
    by_dims(queries[0].q.dim, queries[0].out.dim, [&]<int key_dim, int value_dim>(dims<key_dim, value_dim>) {
      using body = detail::device_flash_forward<T, Mask, key_dim, value_dim, Policies>;
      require_bytes(body::shared_bytes);
      detail::for_device_blocks(queries, keys, [&](const auto& some_queries, const auto& some_keys) {
        if constexpr (limit == device_instructions::wgmma) {
          if (forward_by_warpgroups<key_dim, columns_of(value_dim)>(context, some_queries, some_keys, heads, scale,
                                                                    mask))
            return;
        }
        launch(context, body{some_queries, some_keys, heads, scale, mask});
      });
    });
  }

  /// The gradients of sum(out * grad_out) with respect to q, k and v accumulate; `lse` and `delta` are the forward's.
  /// Scores and probabilities are computed once for grad_q and once for grad_k and grad_v (twice where the head
  /// dimensions are padded to 256, or, with wgmma, to 192 and 128), so that no sum is shared between blocks of threads
  /// and the same call gives the same bits. Cost: 2 * (4 * dim of k + 3 * dim of v) flop, or 2 * (5 * dim of k + 3 *
  /// dim of v), per pair of a tile that is not `none`. Throws as `forward` does.
  template <mask Mask>
  static void backward(const device_context& context, std::span<const backward_queries<T, float>> queries,
                       std::span<const backward_keys<T, float>> keys, const head_map& heads, float scale,
                       const Mask& mask) {
    if (queries.empty() && keys.empty()) return;
    require_tokens(queries);
    require_tokens(keys);
    const std::int64_t is_key_dim = keys.empty() ? queries[0].q.dim : keys[0].k.dim;
    const std::int64_t is_value_dim = keys.empty() ? queries[0].grad_out.dim : keys[0].v.dim;
    by_dims(is_key_dim, is_value_dim, [&]<int key_dim, int value_dim>(dims<key_dim, value_dim>) {
      using enum device_gradient;
      require_bytes(detail::device_flash_backward<T, Mask, key_dim, value_dim, of_queries, Policies>::shared_bytes);
      detail::for_device_blocks(queries, keys, [&](const auto& some_queries, const auto& some_keys) {
        if constexpr (limit == device_instructions::wgmma) {
          if (backward_by_warpgroups<columns_of(key_dim), columns_of(value_dim)>(context, some_queries, some_keys,
                                                                                 heads, scale, mask))
            return;
        }
        with_gradients<(key_dim + value_dim <= 320)>([&]<device_gradient... gradient>(gradients<gradient>...) {
          (launch(context,
                  detail::device_flash_backward<T, Mask, key_dim, value_dim, gradient, Policies>{
                      some_queries, some_keys, heads, scale, mask}),
           ...);
        });
      });
    });
  }

 private:
  template <device_gradient>
  struct gradients {};

  /// Returns work(gradients...) for the kernels of a backward: two, or three where a thread's registers do not hold the
  /// sums of grad_k and of grad_v.
  template <bool two, class Work>
  static decltype(auto) with_gradients(const Work& work) {
    using enum device_gradient;
    if constexpr (two) {
      return work(gradients<of_queries>{}, gradients<of_keys_and_values>{});
    } else {
      return work(gradients<of_queries>{}, gradients<of_keys>{}, gradients<of_values>{});
    }
  }

  template <class Body>
  [[nodiscard]] static std::string policy_of() {
    return to_string(Body::policy) + "\n";
  }

  static constexpr int compute_capability = 80;

  static void require_bytes(int shared_bytes) {
    static const std::string own_name = name();  // calls allocate nothing
    Device::require(own_name, {compute_capability, shared_bytes});
  }

  /// Tokens of a tile are counted by int: see `device_cursor`.
  template <class Block>
  static void require_tokens(std::span<const Block> blocks) {
    constexpr std::int64_t most = (std::int64_t{1} << 31) - 256;
    for (const Block& one : blocks) {
      const std::int64_t tokens = one.positions.tokens();
      if (tokens < most) continue;
      throw std::invalid_argument{"orrery: a shard has " + std::to_string(tokens) + " tokens, but kernel " + name() +
                                  " takes fewer than " + std::to_string(most) +
                                  "; distribute the sequence over more ranks"};
    }
  }

  template <int key_dim, int value_dim>
  struct dims {};

  /// Calls work(dims) with the smallest that a kernel is written for and that hold these.
  template <class Work>
  static void by_dims(std::int64_t key_dim, std::int64_t value_dim, const Work& work) {
    const std::int64_t dim = key_dim > value_dim ? key_dim : value_dim;
    if (dim > largest) {
      throw std::invalid_argument{"orrery: head dimension is " + std::to_string(dim) + ", but kernel " + name() +
                                  " is compiled up to " + std::to_string(largest) +
                                  (largest < 256 ? "; its second template argument goes up to 256"
                                                 : "; orrery::device_reference has no limit")};
    }
    if (dim <= 64) return work(dims<64, 64>{});
    if constexpr (largest > 64) {
      if (dim <= 96) return work(dims<96, 96>{});
    }
    if constexpr (largest > 96) {
      if (dim <= 128) return work(dims<128, 128>{});
    }
    if constexpr (largest > 128) {
      if (dim <= 192 && value_dim <= 128) return work(dims<192, 128>{});
      work(dims<256, 256>{});
    }
  }

  /// False, and nothing is enqueued, if the device, the tensors or the size of the mask do not allow it.
  template <int key_dim, int value_dim, class Queries, class Keys, class Mask>
  static bool forward_by_warpgroups(const device_context& context, const Queries& queries, const Keys& keys,
                                    const head_map& heads, float scale, const Mask& mask) {
    using body = detail::device_flash_wgmma_forward<T, Mask, key_dim, value_dim, Policies>;
    if constexpr (sizeof(body) <= launch_bytes) {
      if (!Device::has_warpgroups(body::shared_bytes)) return false;
      for (const auto& one : queries) {
        if (!can_copy(one.q, one.positions)) return false;
      }
      for (const auto& one : keys) {
        if (!can_copy(one.k, one.positions) || !can_copy(one.v, one.positions)) return false;
      }
      launch_by_warpgroups<body>(context, queries, keys, heads, scale, mask);
      return true;
    } else {
      return false;
    }
  }

  /// The same, with one kernel for grad_k and grad_v where a thread's registers hold both.
  template <int key_dim, int value_dim, class Queries, class Keys, class Mask>
  static bool backward_by_warpgroups(const device_context& context, const Queries& queries, const Keys& keys,
                                     const head_map& heads, float scale, const Mask& mask) {
    return with_gradients<(key_dim + value_dim <= 256)>([&]<device_gradient... gradient>(gradients<gradient>...) {
      if constexpr (((sizeof(detail::device_flash_wgmma_backward<T, Mask, key_dim, value_dim, gradient, Policies>) <=
                      launch_bytes) &&
                     ...)) {
        if (!(Device::has_warpgroups(
                  detail::device_flash_wgmma_backward<T, Mask, key_dim, value_dim, gradient, Policies>::shared_bytes) &&
              ...)) {
          return false;
        }
        for (const auto& one : queries) {
          if (!can_copy(one.q, one.positions) || !can_copy(one.grad_out, one.positions)) return false;
        }
        for (const auto& one : keys) {
          if (!can_copy(one.k, one.positions) || !can_copy(one.v, one.positions)) return false;
        }
        (launch_by_warpgroups<detail::device_flash_wgmma_backward<T, Mask, key_dim, value_dim, gradient, Policies>>(
             context, queries, keys, heads, scale, mask),
         ...);
        return true;
      } else {
        return false;
      }
    });
  }

  static constexpr int columns_of(int dim) { return Policies::warpgroup_columns(dim); }
  static constexpr std::size_t launch_bytes = 4096;  ///< of arguments

  /// Returns true if tensor copies can read the tokens of a shard. One without elements they never read.
  static bool can_copy(const tensor_view<const T>& view, const segments& positions) {
    const detail::tensor_box box = detail::tensor_box::of(view, positions.tokens(), 1);
    return box.is_empty() || box.has_map();
  }

  template <class Body, class Queries, class Keys, class Mask>
  static void launch_by_warpgroups(const device_context& context, const Queries& queries, const Keys& keys,
                                   const head_map& heads, float scale, const Mask& mask) {
    const Body body = Body::template on<Device>(queries, keys, heads, scale, mask);
    Device::template launch_warpgroups<Body::threads_of_block>(context, body.blocks(), Body::shared_bytes, body);
  }

  template <class Body>
  static void launch(const device_context& context, const Body& body) {
    Device::template launch<Body::threads_of_block>(context, body.blocks(), Body::shared_bytes, body);
  }
};

}  // namespace orrery
