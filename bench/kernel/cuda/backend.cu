// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// What moves between tiles on a GPU, in per cent of the copy bandwidth (cudaMemcpyAsync within the device) measured in
// the same run: packing, unpacking, merges, sums and delta of 16384 tokens, 32 heads of 128.
#include <cstdint>
#include <cstdio>
#include <exception>

#include <cuda_runtime.h>

#include "orrery/kernel/cuda/backend.cuh"
#include "orrery/kernel/cudnn/delta_rows.cuh"
#include "orrery/tensor/float16.hpp"

#include "common/arguments.hpp"
#include "common/device_timing.hpp"

namespace {

using orrery::bfloat16;
using backend = orrery::detail::device_backend<>;

constexpr std::int64_t tokens = 16384, heads = 32, dim = 128, elements = tokens * heads * dim;

}  // namespace

int main(int argc, char** argv) try {
  bench::arguments{argc, argv, "bench_kernel_cuda_backend"}.finish();
  cudaDeviceProp device;
  orrery::detail::check_cuda(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  const orrery::detail::cuda_stream stream;
  const orrery::device_context context{stream.get()};
  const bench::device_numbers<bfloat16> x(elements), y(elements), z(elements);
  const bench::device_numbers<float> s(elements), t(elements);
  const bench::device_numbers<float> rows(tokens * heads), more_rows(tokens * heads);

  const auto own = orrery::batch_sequence_head_dim(x.data(), 1, tokens, heads, dim);
  const auto packed = orrery::batch_head_sequence_dim(y.data(), 1, heads, tokens, dim);
  const auto other = orrery::batch_head_sequence_dim(z.data(), 1, heads, tokens, dim);
  const auto sum = orrery::batch_head_sequence_dim(s.data(), 1, heads, tokens, dim);
  const auto arrived = orrery::batch_head_sequence_dim(t.data(), 1, heads, tokens, dim);
  const auto lse = orrery::batch_head_sequence(rows.data(), 1, heads, tokens);
  const auto arrived_lse = orrery::batch_head_sequence(more_rows.data(), 1, heads, tokens);

  double ceiling = 0;
  std::printf("%s\n%-44s %8s %8s %8s\n", device.name, "kernel", "ms", "GB/s", "% copy");
  const auto report = [&](const char* name, double bytes, const auto& work) {
    const double milliseconds = bench::milliseconds_of(stream.get(), 20, work);
    const double rate = bytes / milliseconds / 1e6;
    if (ceiling == 0) ceiling = rate;
    std::printf("%-44s %8.3f %8.0f %8.1f\n", name, milliseconds, rate, 100 * rate / ceiling);
  };
  constexpr double all = static_cast<double>(elements);
  report("cudaMemcpyAsync", 8 * all, [&] {
    orrery::detail::check_cuda(
        cudaMemcpyAsync(s.data(), t.data(), 4 * elements, cudaMemcpyDeviceToDevice, stream.get()), "cudaMemcpyAsync");
  });
  report("pack a trainer's tensor", 4 * all, [&] { backend::copy(context, own, packed); });
  report("pack a quarter of its heads", all,
         [&] { backend::copy(context, own.slice_heads(8, 8), packed.slice_heads(0, 8)); });
  report("unpack sums, rounding them", 6 * all, [&] { backend::copy(context, sum, own); });
  report("merge float partials", 12 * all, [&] { backend::merge(context, sum, lse, arrived, arrived_lse); });
  report("merge bfloat16 partials", 10 * all, [&] { backend::merge(context, sum, lse, packed, arrived_lse); });
  report("add float", 12 * all, [&] { backend::add(context, sum, arrived); });
  report("add bfloat16", 10 * all, [&] { backend::add(context, sum, packed); });
  report("delta", 4 * all, [&] { backend::row_dot(context, own, other, lse); });
  report("the output of cuDNN's backward", 4 * all, [&] {
    orrery::detail::launch_cudnn_rows<orrery::detail::gpu>(
        context, orrery::detail::device_cudnn_rows<bfloat16>{own, lse, lse, packed, arrived_lse});
  });
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
