#include "train/error_feedback.h"

#include <mlx/ops.h>

#include <algorithm>

namespace tandem::train {

namespace mx = mlx::core;

mx::array ErrorFeedback::rounded(std::size_t gradient, const mx::array& value) {
  const mx::array wanted = mx::add(value, held_[gradient]);
  const mx::array sent = mx::astype(mx::astype(wanted, mx::bfloat16), mx::float32);
  next_[gradient] = mx::subtract(wanted, sent);
  return sent;
}

void ErrorFeedback::clear() {
  std::fill(held_.begin(), held_.end(), mx::array(0.0F));
  next_ = held_;
}

}  // namespace tandem::train
