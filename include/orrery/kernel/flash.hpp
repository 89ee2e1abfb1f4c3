// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <concepts>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "orrery/attention/tile.hpp"
#include "orrery/host/context.hpp"
#include "orrery/kernel/cpu/backend.hpp"
#include "orrery/kernel/cpu/flash_backward.hpp"
#include "orrery/kernel/cpu/flash_few_rows.hpp"
#include "orrery/kernel/cpu/flash_forward.hpp"
#include "orrery/kernel/cpu/grouped_heads.hpp"
#include "orrery/kernel/cpu/microkernels.hpp"
#include "orrery/kernel/cpu/simd.hpp"
#include "orrery/kernel/flash_policies.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/float16.hpp"

namespace orrery {

/// The fast attention kernel for processors: blocked online softmax, vectorised, for the widest instruction set that
/// the processor has (at most `limit`; found at run time, so no -march flag is needed).
///
/// Results depend on the instruction set and on how keys are split into calls, by rounding only; not on the context's
/// threads: the same bits, whatever their number. Scores more than about 75 (float) or 699 (double) below a row's
/// largest contribute exactly nothing. Head dimensions up to `max_head_dim`, of q and k and of v separately; 64 to 256
/// are fastest.
///
/// Tokens that the mask hides may hold anything: a query that sees no key of a call, or a key that no query of it sees
/// (padding, as memory was before), changes no bit of the call's results, and its own are those of nothing. An infinity
/// or NaN in a token that is seen reaches all that see it, and may reach what shares a block with these (up to 512
/// tokens of a segment) although it does not see it, since 0 times NaN is NaN. `reference` keeps to the pairs.
///
/// A score of -infinity hides its pair, as a mask does; a row that has no other score has seen no key. A score that is
/// NaN or +infinity, also one that overflows, makes `out` and lse of its row NaN, and all gradients that depend on
/// them. However the keys are split into calls, and in whatever order. (Not under -ffinite-math-only, which -ffast-math
/// and -Ofast imply: there only finite inputs with finite scores, and rows that see no key, are right.)
///
/// Nothing is allocated: scratch is on the stack, at most 1344 KiB, of every thread that computes. glibc gives threads
/// 8 MiB (2 where `ulimit -s` is unlimited), but macOS 512 KiB and musl 128 KiB unless told otherwise, which is too
/// little.
///
/// T is float, double, bfloat16 or float16. The 16-bit types are storage: everything is computed and summed in float,
/// and so are log-sum-exp and the partials that travel; only what the operator returns is rounded to T, once.
///
/// `Policies` chooses the sizes of blocks: see `flash_policies`.
///
/// Compiler flags: for finite inputs whose scores are finite, results are as accurate under `-ffast-math` or `-Ofast`,
/// with denormal numbers flushed to zero or not, and in a program of which only parts are compiled so. But such flags
/// allow a compiler to assume that there are no infinities and no NaN: where inputs or scores hold some, so may
/// anything that the same call computes, and none need reach the results.
template <class T, instruction_set limit = instruction_set::avx512, class Policies = flash_policies>
struct flash : detail::host_backend {
  static_assert(std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bfloat16> ||
                    std::same_as<T, float16>,
                "orrery::flash stores float, double, orrery::bfloat16 or orrery::float16; for other element types use "
                "orrery::reference");

  using storage = T;
  using accumulator = std::conditional_t<sizeof(T) == 2, float, T>;
  using context = host_context;
  using policies = Policies;  ///< print them with `to_string(policies::forward())`

  static constexpr std::int64_t max_head_dim = detail::flash_max_head_dim;

  /// Any mask works; blocks that its `classify` calls `none` cost nothing, and only `some` are tested pair by pair.
  template <mask Mask>
  static constexpr bool supports = true;

  [[nodiscard]] static std::string name() { return "flash<" + detail::element_name<T>() + ">"; }

  /// The instruction set that calls run on.
  [[nodiscard]] static instruction_set instructions() noexcept {
    const instruction_set widest = widest_instruction_set();
    return widest < limit ? widest : limit;
  }

  /// Every query of `queries` meets every key of `keys` that the mask lets it see; (out, lse) accumulate.
  /// Cost: 2 * (dim of k + dim of v) flop per visible pair.
  template <mask Mask>
  static void forward(const host_context& context, std::span<const forward_queries<T, accumulator>> queries,
                      std::span<const forward_keys<T>> keys, const head_map& heads, accumulator scale,
                      const Mask& mask) {
    const detail::flash_steps<accumulator> steps = detail::flash_steps_for<accumulator>(instructions());
    const auto run = [&](const auto& tile) {
      context.for_each(tile.items(), [&](std::int64_t item, const host_context& own) { tile.run(item, own); });
    };
    const detail::flash_few_rows<T, accumulator, Mask, Policies> few{queries,          keys, heads, scale, mask, steps,
                                                                     context.threads()};
    if (few.suits()) return run(few);
    const std::int64_t group = detail::query_heads_per_key_head(queries, heads);
    if (group > 1 && queries.size() == 1 && detail::tokens_of(queries) == 1) {
      const head_map one_by_one{heads.key_head(0), 0, 1};
      const auto rows = detail::heads_as_tokens(queries.front(), group);
      return run(detail::flash_forward<T, accumulator, Mask, Policies>{std::span(&rows, 1), keys, one_by_one, scale,
                                                                       mask, steps, context.threads()});
    }
    run(detail::flash_forward<T, accumulator, Mask, Policies>{queries, keys, heads, scale, mask, steps,
                                                              context.threads()});
  }

  /// The gradients of sum(out * grad_out) with respect to q, k and v accumulate; `lse` and `delta` are the forward's.
  /// Cost: 2 * (3 * dim of k + 2 * dim of v) flop per visible pair.
  template <mask Mask>
  static void backward(const host_context& context, std::span<const backward_queries<T, accumulator>> queries,
                       std::span<const backward_keys<T, accumulator>> keys, const head_map& heads, accumulator scale,
                       const Mask& mask) {
    const detail::flash_backward<T, accumulator, Mask, Policies> tile{
        queries, keys, heads, scale, mask, detail::flash_steps_for<accumulator>(instructions())};
    if (tile.items() == 0) {
      for (const auto& block : queries) {
        if (block.fresh) clear(context, block.grad_q);
      }
    }
    tile.run_all(context);
  }
};

}  // namespace orrery
