// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// Tests that need a GPU. Without one they say so, and end with the code by which ctest calls them skipped.
#define DOCTEST_CONFIG_IMPLEMENT
#include <cstdio>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

int main(int argc, char** argv) {
  int devices = 0;
  const cudaError_t code = cudaGetDeviceCount(&devices);
  if (code != cudaSuccess || devices == 0) {
    std::printf("Skipped: there is no GPU here (cudaGetDeviceCount: %s).\n", cudaGetErrorString(code));
    return 77;
  }
  return doctest::Context{argc, argv}.run();
}
