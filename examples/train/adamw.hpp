// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <vector>

namespace train {

/// Linear warm-up over the first tenth of the steps, then half a cosine down to a tenth of the peak.
inline double learning_rate(std::int64_t step, std::int64_t steps, double peak) {
  const std::int64_t warm_up = std::max<std::int64_t>(1, steps / 10);
  if (step < warm_up) return peak * static_cast<double>(step + 1) / static_cast<double>(warm_up);
  const double progress = static_cast<double>(step - warm_up) / static_cast<double>(steps - warm_up);
  return peak * (0.55 + 0.45 * std::cos(std::numbers::pi * progress));
}

/// Scales the gradients so that their Euclidean norm is at most `limit`.
template <class T>
void clip(std::span<T> gradients, double limit) {
  double squares = 0;
  for (const T g : gradients) squares += static_cast<double>(g) * static_cast<double>(g);
  const double excess = std::sqrt(squares) / limit;
  if (excess > 1)
    for (T& g : gradients) g /= static_cast<T>(excess);
}

/// Adam with decoupled weight decay. Every rank runs it on all parameters: same gradients, same result.
///
/// Epsilon is 1e-5, not 1e-8, because gradients that are zero but for rounding are divided by it: they must not become
/// updates that count.
template <class T>
class adamw {
 public:
  explicit adamw(std::size_t parameters) : mean_(parameters), square_(parameters) {}

  void step(std::span<T> parameters, std::span<const T> gradients, double learning_rate_now) {
    constexpr T beta1 = static_cast<T>(0.9), beta2 = static_cast<T>(0.95), decay = static_cast<T>(0.1);
    mean_bias_ *= beta1;
    square_bias_ *= beta2;
    const T rate = static_cast<T>(learning_rate_now);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      mean_[i] += (1 - beta1) * (gradients[i] - mean_[i]);
      square_[i] += (1 - beta2) * (gradients[i] * gradients[i] - square_[i]);
      const T scale = std::sqrt(square_[i] / (1 - square_bias_)) + static_cast<T>(1e-5);
      parameters[i] -= rate * (mean_[i] / (1 - mean_bias_) / scale + decay * parameters[i]);
    }
  }

 private:
  std::vector<T> mean_, square_;
  T mean_bias_ = 1, square_bias_ = 1;  // how much of the moments is still the zero that they began with
};

}  // namespace train
