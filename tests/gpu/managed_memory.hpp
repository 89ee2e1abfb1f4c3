// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory_resource>

#include <cuda_runtime_api.h>

#include "orrery/device/context.hpp"

#include "kernel/problem.hpp"

/// The tensors of a source that includes this are in memory that the host and the device share, and its kernels are
/// waited for.
namespace cuda_test {

class managed_memory final : public std::pmr::memory_resource {
 public:
  /// As long as the program runs.
  static bool use() {
    static managed_memory shared;
    kernel_test::home = {&shared, [] { orrery::detail::check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }};
    return true;
  }

 private:
  void* do_allocate(std::size_t bytes, std::size_t) override {
    void* memory = nullptr;
    orrery::detail::check_cuda(cudaMallocManaged(&memory, bytes), "cudaMallocManaged");
    return memory;
  }
  void do_deallocate(void* memory, std::size_t, std::size_t) override { cudaFree(memory); }
  [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    return this == &other;
  }
};

inline const bool in_managed_memory = managed_memory::use();

}  // namespace cuda_test
