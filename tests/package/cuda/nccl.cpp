#include <cstdio>

#include <orrery/transport/nccl.hpp>

int main() {
  try {
    const orrery::nccl::world none{nullptr, nullptr};
  } catch (const std::invalid_argument& e) {
    std::printf("%s\n", e.what());
    return 0;
  }
  return 1;
}
