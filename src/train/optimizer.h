// The rules by which gradients move parameters.
#pragma once

#include <mlx/array.h>
#include <mlx/distributed/distributed.h>

#include <string>
#include <vector>

#include "kernels/adamw.h"
#include "weights/source.h"

namespace tandem::train {

struct OptimizerOptions {
  // adamw (Loshchilov and Hutter, arXiv:1711.05101, with the bias correction of Adam, arXiv:1412.6980), sgd
  // (with momentum where beta1 > 0), lion (Chen et al., arXiv:2302.06675), adafactor (adafactor.h; with
  // momentum where beta1 > 0), muon (muon.h, with Nesterov's momentum; what is no matrix of a layer, and
  // routers, take adamw with the usual beta1).
  std::string name = "adamw";
  float beta1 = 0.9F, beta2 = 0.999F;
  float eps = 1e-8F;
  float weight_decay = 0.01F;  // decoupled: times the learning rate
  // Of each number that adamw remembers of matrices: 32, or 8 (kernels/eight_bits.h).
  int bits = 32;
  // What a step adds to a router's bias for an expert that fewer tokens chose than the mean, and takes off
  // the others' (DeepSeek-V3, arXiv:2412.19437, section 2.1.2): its gradient is how many chose each.
  float balance_rate = 0;
};

// beta1 where none is asked for.
float usual_beta1(const std::string& name);

class Optimizer {
 public:
  // Of each parameter its name and where this rank's part lies in it, and the ranks with the other parts.
  // InputError where there is no such rule.
  Optimizer(OptimizerOptions options, std::vector<weights::Slice> slices,
            mlx::core::distributed::Group group);

  // The parameters after a step by `gradients`, evaluated.
  std::vector<mlx::core::array> step(const std::vector<mlx::core::array>& parameters,
                                     const std::vector<mlx::core::array>& gradients, double learning_rate);

  // Steps so far, and what the rule remembers of a parameter: this rank's parts of named tensors, in float32.
  // Zeros before the first step.
  int steps() const { return steps_; }
  std::vector<weights::Slice> state_slices(std::size_t parameter) const;
  std::vector<mlx::core::array> state(std::size_t parameter) const;
  void restore(int steps) { steps_ = steps; }
  void restore(std::size_t parameter, const std::vector<mlx::core::array>& state);
  // What all of that takes, and what it takes once there was a step.
  std::size_t state_bytes() const;
  std::size_t state_bytes_in_full() const;

 private:
  const std::string& rule_of(std::size_t parameter) const;
  bool in_8_bit(std::size_t parameter) const;
  kernels::AdamwStep adamw_step(float learning_rate) const;
  // The parameter after a step; what is remembered of it changes.
  mlx::core::array moved_in_8_bit(std::size_t parameter, const mlx::core::array& value,
                                  const mlx::core::array& gradient, float learning_rate);
  mlx::core::array moved(std::size_t parameter, const mlx::core::array& value,
                         const mlx::core::array& gradient, std::vector<mlx::core::array>& state,
                         float learning_rate) const;

  OptimizerOptions options_;
  std::vector<weights::Slice> slices_;
  mlx::core::distributed::Group group_;
  int steps_ = 0;
  // Of each parameter: state() itself, or codes and largest values of the mean and of the squares' root.
  std::vector<std::vector<mlx::core::array>> kept_;
};

}  // namespace tandem::train
