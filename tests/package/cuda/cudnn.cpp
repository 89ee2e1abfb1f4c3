#include <cstdio>

#include <cudnn.h>
#include <cudnn_frontend_version.h>

#include <orrery/kernel/cudnn/call.hpp>

int main() {
  std::printf("cuDNN %zu, cudnn-frontend %d: %s\n", cudnnGetVersion(), CUDNN_FRONTEND_VERSION,
              orrery::detail::cudnn_call{}.text().c_str());
}
