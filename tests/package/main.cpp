#include <cstdio>

#include <orrery/orrery.hpp>

static_assert(orrery::verify(orrery::ring{}, 4));

int main() {
  const bool right = static_cast<bool>(orrery::verify(orrery::ring{}, 7));
  std::printf("A ring of seven ranks is %s.\n", right ? "right" : "wrong");
  return right ? 0 : 1;
}
