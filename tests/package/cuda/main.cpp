#include <cstdio>

#include <orrery/transport/device.hpp>

// With or without a GPU.
int main() {
  try {
    orrery::device::run(2, [](auto& world) { world.barrier(); });
    std::printf("ran\n");
  } catch (const orrery::device_error& e) {
    std::printf("%s\n", e.what());
  }
}
