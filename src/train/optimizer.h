// The rules by which gradients move parameters. State is float32, one set of arrays a parameter.
#pragma once

#include <mlx/array.h>

#include <string>
#include <vector>

namespace tandem::train {

struct OptimizerOptions {
  // adamw (Loshchilov and Hutter, arXiv:1711.05101, with the bias correction of Adam, arXiv:1412.6980), sgd
  // (with momentum where beta1 > 0), lion (Chen et al., arXiv:2302.06675).
  std::string name = "adamw";
  float beta1 = 0.9F, beta2 = 0.999F;
  float eps = 1e-8F;
  float weight_decay = 0.01F;  // decoupled: times the learning rate
};

class Optimizer {
 public:
  // InputError where there is no rule of this name.
  explicit Optimizer(OptimizerOptions options);

  // The parameters after a step by `gradients`, evaluated. Their order stays the same from step to step.
  std::vector<mlx::core::array> step(const std::vector<mlx::core::array>& parameters,
                                     const std::vector<mlx::core::array>& gradients, double learning_rate);

  // Steps so far, and what the rule remembers of them: as many arrays for each parameter, the parameters one
  // after the other. Nothing before the first step.
  int steps() const { return steps_; }
  const std::vector<mlx::core::array>& state() const { return state_; }
  void restore(int steps, std::vector<mlx::core::array> state);
  int arrays_a_parameter() const;

 private:
  mlx::core::array moved(const mlx::core::array& parameter, const mlx::core::array& gradient,
                         mlx::core::array* state, float learning_rate) const;

  OptimizerOptions options_;
  int steps_ = 0;
  std::vector<mlx::core::array> state_;
};

}  // namespace tandem::train
