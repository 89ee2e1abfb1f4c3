// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>
#include <limits>       // IWYU pragma: keep
#include <type_traits>  // IWYU pragma: keep

#include "orrery/kernel/cpu/exponential.hpp"  // IWYU pragma: keep
#include "orrery/kernel/cpu/simd.hpp"
#include "orrery/tensor/float16.hpp"  // IWYU pragma: keep
#include "orrery/tensor/math.hpp"     // IWYU pragma: keep

namespace orrery::detail {

/// Head dimensions that the flash kernel can hold, and the stack that one of its work items uses for it: enough for one
/// tile of queries and a few keys at the largest dimension; at 64 to 128, for hundreds, so that copying and storing
/// them is little beside the arithmetic. The forward, which goes through all of its scratch for each block of keys,
/// stays within a second-level cache. The backward need not: what it holds of keys it reads and writes in order, and a
/// block of keys twice as long halves the visits to rows of queries, which lie scattered.
inline constexpr std::int64_t flash_max_head_dim = 576;
inline constexpr std::int64_t flash_forward_scratch_bytes = 1024 * 1024;
inline constexpr std::int64_t flash_forward_totals_bytes = 320 * 1024;
inline constexpr std::int64_t flash_backward_scratch_bytes = 1344 * 1024;

/// How much larger than the largest score so far (of which weights are relative) a score may be, in powers of two: far
/// from overflow, and little enough that sums lose nothing.
template <class T>
inline constexpr T flash_head_room = T{8};

/// Rows of a caller's tensor that are needed soon, and are asked for while a product computes: some for each of its
/// tiles. Rows of one head lie in pages of their own, which a translation buffer forgets and no prefetcher of the
/// processor follows; so a row's page is touched one tile before its lines are asked for.
struct row_prefetch {
  const std::byte* from = nullptr;  ///< the next row
  std::int64_t stride = 0;          ///< bytes from row to row
  std::int64_t bytes = 0;           ///< of a row
  std::int64_t left = 0;            ///< rows to ask for
  std::int64_t each = 0;            ///< rows for each tile of a product
  bool to_write = false;

  /// Before a tile: asks for its share.
  [[gnu::noinline]] void ask() noexcept {
    for (std::int64_t row = 0; row < each && left > 0; ++row, --left, from += stride) {
      if (each < left) static_cast<void>(*static_cast<const volatile std::byte*>(from + each * stride));
      for (std::int64_t at = 0; at < bytes; at += 64) {
        if (to_write) {
          __builtin_prefetch(from + at, 1, 3);
        } else {
          __builtin_prefetch(from + at, 0, 3);
        }
      }
    }
  }
};

/// Asks for what lies some rows after an address, to be read once: memory that is not there does no harm.
template <class T>
[[gnu::always_inline]] inline void prefetch_ahead(const T* at, std::int64_t stride) noexcept {
  constexpr std::uintptr_t rows = 8;
  const std::uintptr_t distance = rows * static_cast<std::uintptr_t>(stride) * sizeof(T);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): not a pointer into an array, perhaps
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(at) + distance), 0, 2);
}

/// Rows of a caller's tensor on their way to scratch, one after the other, while a product computes: some for each of
/// its tiles. A row's page is touched two tiles, and its lines are asked for one tile before it is copied.
template <class T>
struct row_copies {
  const std::byte* from = nullptr;  ///< the next row
  std::int64_t stride = 0;          ///< bytes from row to row
  std::int64_t bytes = 0;           ///< of a row
  T* to = nullptr;                  ///< where the next row goes
  std::int64_t ld = 0;              ///< elements from row to row
  std::int64_t dim = 0;             ///< elements of a row
  std::int64_t width = 0;           ///< of a row in scratch, which is padded with zeros
  std::int64_t left = 0;            ///< rows to copy
  std::int64_t each = 1;            ///< rows for each tile of a product
  void (*widen)(const void* from, T* to, std::int64_t count) = nullptr;  ///< where the tensor's type is another
  row_prefetch asked;                                                    ///< other rows to ask for on the way

  /// Before a tile: touches the rows of the tile after the next, and asks for the lines of the next one's.
  void ask_ahead() noexcept {
    for (std::int64_t row = each; row < 2 * each && row < left; ++row) {
      if (row + each < left) static_cast<void>(*static_cast<const volatile std::byte*>(from + (row + each) * stride));
      for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + row * stride + at, 0, 3);
    }
    if (__builtin_expect(asked.left > 0, 0)) asked.ask();
  }
};

/// The steps of flash attention that are compiled once for each instruction set: what the kernel spends its time in.
///
/// All matrices are row-major in scratch memory; `ld` is the distance of rows in elements. Rows are padded to
/// multiples of `tile_rows`, widths to multiples of `lanes`, so that no step has a remainder.
///
/// Forward works on transposed tiles of `columns` queries: scores[key][query] and out[dim][query]. Maxima and sums over
/// keys are then plain vector operations, and K and V are read as they lie, element by element; only Q is transposed,
/// once for all keys.
template <class T>
struct flash_steps {
  std::int64_t columns;    ///< queries in a forward tile
  std::int64_t lanes;      ///< elements of a vector
  std::int64_t tile_rows;  ///< rows that a product computes at once

  /// Keys of a block with which the backward computes at once, so that their scores stay in the nearest caches; 0: all
  /// of the block. A multiple of `lanes` and `tile_rows`.
  std::int64_t keys_at_once;

  /// to[dim x width] = from[rows x dim]^T * factor, and zero from column `rows` on; width is a multiple of `lanes`.
  void (*transpose)(const T* from, std::int64_t ld, std::int64_t rows, std::int64_t dim, T factor, T* to,
                    std::int64_t ld_to, std::int64_t width);

  /// to[rows x dim] = from[dim x rows]^T * factors (row by row); from and factors have whole vectors of columns.
  void (*transpose_back)(const T* from, std::int64_t ld, const T* factors, T* to, std::int64_t ld_to, std::int64_t rows,
                         std::int64_t dim);

  /// scores[rows x columns] = keys[rows x depth] * queries[depth x columns]. Here and in the two that follow, only the
  /// vectors that hold the first `width` columns are computed.
  void (*scores)(const T* keys, std::int64_t ld_keys, const T* queries, std::int64_t depth, T* scores,
                 std::int64_t rows, std::int64_t width, row_copies<T>& copies);

  /// Online softmax over `keys` rows of scores, in powers of two: scores become 2^(score - largest), `largest` and
  /// `sum` are brought up to date, and `factors` is what the results so far must be multiplied by. `largest` stays as
  /// long as no score is more than `flash_head_room` above it.
  /// Source: Milakov and Gimelshein, arXiv 1805.02867, algorithm 3.
  void (*softmax)(T* scores, std::int64_t keys, T* largest, T* sum, T* factors, std::int64_t width);

  /// `scores` and `softmax` in one pass that keeps scores in registers: weights[rows x columns] = 2^(score - largest),
  /// added to `sum`. Only as long as no score is more than `flash_head_room` above the largest so far, which stays:
  /// else false, and then nothing but `weights` and `copies` has changed.
  bool (*weights)(const T* keys, std::int64_t ld_keys, const T* queries, std::int64_t depth, T* weights,
                  std::int64_t rows, const T* largest, T* sum, std::int64_t width, row_copies<T>& copies);

  /// out[rows x columns] = out * factors (column by column) + values[keys x rows]^T * probabilities[keys x columns]
  void (*accumulate)(const T* values, std::int64_t ld_values, const T* probabilities, std::int64_t keys,
                     const T* factors, T* out, std::int64_t rows, std::int64_t width, row_copies<T>& copies);

  /// c[rows x width] (+)= A[rows x depth] * b[depth x width], where A is a (by_row) or the transpose of a. c may be in
  /// a caller's memory.
  void (*product)(bool by_row, const T* a, std::int64_t lda, const T* b, std::int64_t ldb, std::int64_t depth, T* c,
                  std::int64_t ldc, std::int64_t rows, std::int64_t width, bool accumulate);

  /// Backward: to[rows x width] = factors[rows] * 2^(queries[rows x depth] * keys[depth x width] - base[rows]); keys,
  /// like `to`, are `ld` apart.
  void (*probabilities)(const T* queries, std::int64_t ld_queries, const T* keys, std::int64_t depth, const T* base,
                        const T* factors, T* to, std::int64_t ld, std::int64_t rows, std::int64_t width);

  /// Backward: to[rows x width] = probabilities[rows x width] * (grad_out[rows x depth] * values[depth x width] -
  /// delta[rows]), elementwise outside.
  void (*score_gradients)(const T* grad_out, std::int64_t ld_grad_out, const T* values, std::int64_t depth,
                          const T* delta, const T* probabilities, T* to, std::int64_t ld, std::int64_t rows,
                          std::int64_t width);

  /// For few rows of each of some heads: scores[head][rows x count] = queries[head][rows x depth] * keys[head][count x
  /// depth]^T; depth is a multiple of `lanes`. Rows of queries and scores lie head by head, and keys of a head
  /// `head_stride` after those of the one before. Scores after the last, up to a multiple of `lanes`, may become
  /// anything.
  void (*dots)(const T* queries, std::int64_t ld_queries, std::int64_t rows, std::int64_t heads, const T* keys,
               std::int64_t ld_keys, std::int64_t head_stride, std::int64_t count, std::int64_t depth, T* scores,
               std::int64_t ld);

  /// For few rows: `softmax` of one row, whose scores lie side by side; count is a multiple of `lanes`.
  void (*row_softmax)(T* scores, std::int64_t count, T& largest, T& sum, T& factor);

  /// For few rows of each of some heads: out[head][rows x width] += weights[head][rows x keys] * values[head][keys x
  /// width], likewise; width is a multiple of `lanes`.
  void (*weigh)(const T* weights, std::int64_t ld_weights, std::int64_t rows, std::int64_t heads, const T* values,
                std::int64_t ld_values, std::int64_t head_stride, std::int64_t keys, T* out, std::int64_t ld,
                std::int64_t width);

  /// to[i] += from[i], and from[i] = 0; count is a multiple of `lanes`.
  void (*move_sums)(T* from, T* to, std::int64_t count);

  /// Carries a short sum over to a long one: total[i] += part[i] * factor, and part[i] becomes what that addition lost,
  /// times `back` (1 / factor), so that the long sum's roundings do not add up. For any count.
  /// Source: Knuth, The Art of Computer Programming, volume 2, section 4.2.2, theorem B.
  void (*carry)(T* part, T factor, T back, T* total, std::int64_t count);

  /// to[i] = from[i], for any count. Only of flash_steps<float>.
  void (*widen_bfloat16)(const void* from, T* to, std::int64_t count);
  void (*widen_float16)(const void* from, T* to, std::int64_t count);

  /// Copies all rows that are left.
  void (*copy)(row_copies<T>& copies);

  /// values[i] = 2^values[i]; count is a multiple of `lanes`. For tests.
  void (*powers)(T* values, std::int64_t count);
};

#if defined(__CUDACC__)
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675  // it hands `#pragma GCC unroll` on to the host compiler, but does not know it
#endif

namespace baseline {
inline constexpr int vector_bytes = 16;
inline constexpr unsigned tile_rows = 4;
inline constexpr unsigned tile_vectors = 2;
inline constexpr std::int64_t keys_at_once = 48;
#include "orrery/kernel/cpu/microkernels.inc"
}  // namespace baseline

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
inline constexpr int vector_bytes = 32;
inline constexpr unsigned tile_rows = 4;
inline constexpr unsigned tile_vectors = 3;
inline constexpr std::int64_t keys_at_once = 48;
// NOLINTNEXTLINE(readability-duplicate-include): for other vectors
#include "orrery/kernel/cpu/microkernels.inc"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
namespace avx512 {
inline constexpr int vector_bytes = 64;
inline constexpr unsigned tile_rows = 8;
inline constexpr unsigned tile_vectors = 3;
inline constexpr std::int64_t keys_at_once = 0;
// NOLINTNEXTLINE(readability-duplicate-include): for other vectors
#include "orrery/kernel/cpu/microkernels.inc"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

#if defined(__CUDACC__)
#pragma nv_diagnostic pop
#endif

/// The steps for an instruction set, which the processor must support.
template <class T>
[[nodiscard]] flash_steps<T> flash_steps_for(instruction_set set) noexcept {
#if defined(__x86_64__)
  if (set == instruction_set::avx512) return avx512::steps<T>::table();
  if (set == instruction_set::avx2) return avx2::steps<T>::table();
#else
  static_cast<void>(set);
#endif
  return baseline::steps<T>::table();
}

}  // namespace orrery::detail
