// The learning rate of each step.
#pragma once

#include <string>

namespace tandem::train {

struct Schedule {
  double peak = 1e-5;
  std::string name = "constant";  // linear and cosine fall to 0; wsd stays and falls in the last fifth
  int warm_up = 0;                // steps in which the rate rises linearly to the peak
};

// Of step `number`, counted from 1, of `steps`.
double learning_rate(const Schedule& schedule, int number, int steps);

}  // namespace tandem::train
