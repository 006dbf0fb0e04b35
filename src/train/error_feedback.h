// Gradients whose sums over ranks travel as bfloat16: what rounding takes from a gradient is added to the
// next step's (Seide et al. 2014, "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel
// Distributed Training of Speech DNNs"; Karimireddy et al. 2019, arXiv:1901.09847). So little by little all
// of it is learnt from. Where three ranks or more reduce in parts, sums are rounded as well
// (parallel/tcp_group.h: Wire): that is not held back.
#pragma once

#include <mlx/array.h>

#include <vector>

namespace tandem::train {

class ErrorFeedback {
 public:
  explicit ErrorFeedback(std::size_t gradients) : held_(gradients, mlx::core::array(0.0F)), next_(held_) {}

  // The gradient with what was held back of it, rounded to bfloat16; float32 as it was.
  mlx::core::array rounded(std::size_t gradient, const mlx::core::array& value);

  // What the gradients since the last take() have left over, perhaps not computed yet.
  const std::vector<mlx::core::array>& left_over() const { return next_; }
  void take() { held_ = next_; }
  // A step that was skipped leaves what was held before.
  void forget() { next_ = held_; }
  // Nothing is held back, as at the start.
  void clear();

 private:
  std::vector<mlx::core::array> held_, next_;
};

}  // namespace tandem::train
