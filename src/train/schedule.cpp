#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tandem::train {

double learning_rate(const Schedule& schedule, int number, int steps) {
  if (number <= schedule.warm_up) return schedule.peak * number / schedule.warm_up;
  const int falling = std::max(1, steps - schedule.warm_up);
  const double past = static_cast<double>(number - 1 - schedule.warm_up) / falling;  // 0 to below 1
  if (schedule.name == "linear") return schedule.peak * (1 - past);
  if (schedule.name == "cosine") return schedule.peak * (1 + std::cos(std::numbers::pi * past)) / 2;
  constexpr double last = 0.2;  // of the steps
  if (schedule.name == "wsd") return schedule.peak * std::min(1.0, (1 - past) / last);
  return schedule.peak;
}

}  // namespace tandem::train
