// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Attention over a sequence that is split across ranks of one process, each a stream of a GPU: first by calls, then the
// same forward and backward captured into one CUDA graph and launched again and again. Fails if the graph's results
// have other bits.
//
//     device_graph [ranks]     # on all GPUs that there are, 4 ranks if not told otherwise
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <vector>

#include <orrery/attention.hpp>
#include <orrery/kernel/device_reference.cuh>
#include <orrery/layout/layout.hpp>
#include <orrery/topology/ring.hpp>
#include <orrery/transport/device.hpp>
#include <orrery/transport/device_graph.hpp>

namespace {

constexpr orrery::attention_shape shape{.length = 1024, .query_heads = 4, .head_dim = 64};

void check(cudaError_t code, const char* call) { orrery::detail::check_cuda(code, call); }

/// What one rank's model would have: here one allocation for all tensors, filled with some numbers.
class tensors {
 public:
  tensors(std::int64_t tokens, cudaStream_t stream)
      : stream_{stream},
        size_{tokens * shape.query_heads * shape.head_dim},
        rows_{tokens * shape.query_heads},
        tokens_{tokens},
        memory_{(8 * size_ + rows_) * std::int64_t{sizeof(float)}} {
    std::vector<float> numbers(static_cast<std::size_t>(4 * size_));
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i * 7919 % 1000) / 500 - 1;
    check(cudaMemcpyAsync(memory_.data(), numbers.data(), numbers.size() * sizeof(float), cudaMemcpyHostToDevice,
                          stream_),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

  template <class Attention>
  void step(Attention& attend) const {
    attend.forward(at(0), at(1), at(2), at(4), lse());
    attend.backward(at(0), at(1), at(2), at(4), lse(), at(3), at(5), at(6), at(7));
  }
  /// The results, which are then cleared.
  [[nodiscard]] std::vector<float> take() const {
    std::vector<float> all(static_cast<std::size_t>(4 * size_ + rows_));
    const std::size_t bytes = all.size() * sizeof(float);
    check(cudaMemcpyAsync(all.data(), at(4).data, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
    check(cudaMemsetAsync(at(4).data, 0, bytes, stream_), "cudaMemsetAsync");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    return all;
  }

 private:
  [[nodiscard]] float* numbers() const { return reinterpret_cast<float*>(memory_.data()); }
  [[nodiscard]] orrery::tensor_view<float> at(int which) const {
    return orrery::batch_sequence_head_dim(numbers() + which * size_, 1, tokens_, shape.query_heads, shape.head_dim);
  }
  [[nodiscard]] orrery::row_view<float> lse() const {
    return orrery::batch_head_sequence(numbers() + 8 * size_, 1, shape.query_heads, tokens_);
  }

  cudaStream_t stream_;
  std::int64_t size_;
  std::int64_t rows_;
  std::int64_t tokens_;
  orrery::detail::device_memory memory_;
};

}  // namespace

int main(int argc, char** argv) try {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("Skipped: there is no GPU here.\n");
    return 77;
  }
  const int ranks = argc > 1 ? std::atoi(argv[1]) : 4;
  orrery::device::run(ranks, [&](auto& world) {
    orrery::attention<orrery::ring, orrery::device_reference<float>> attend{world, shape, orrery::causal{},
                                                                            orrery::zigzag{}};
    const tensors mine{attend.query_positions().size(), world.stream()};
    mine.step(attend);
    const std::vector<float> expected = mine.take();

    auto step = orrery::device::capture(world, [&] { mine.step(attend); });
    for (int i = 0; i < 10; ++i) {
      step.launch();
      if (mine.take() != expected) throw std::runtime_error{"The graph's results have other bits than the calls'."};
    }
  });
  std::printf("%d ranks on %d GPUs: ten launches of the graph gave the bits of the calls.\n", ranks, devices);
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
