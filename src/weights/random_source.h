// Random weights of any size, made as they are asked for: to measure a model without its files.
#pragma once

#include <memory>

#include "weights/source.h"

namespace tandem::weights {

// Whether a Hugging Face checkpoint has tensors of such a name: not DeepSeek's FP8 scales, and not the stacks
// and halves that mlx-community's have.
bool is_checkpoint_name(const std::string& name);

// Numbers are cheap rather than good: a fixed block of some ten thousand repeats through each tensor, from an
// offset that depends on its name. So a slice has the same numbers on any split. Matrices have mean 0 and
// deviation 0.02; norms are 1, biases 0.
class RandomSource : public Source {
 public:
  // Matrices, or the scales of quantised ones, in `dtype`: float16, bfloat16 or float32. `bits` of quantised
  // values, 4 or 8; 0: none.
  RandomSource(mlx::core::Dtype dtype, int bits);

  // The names of a Hugging Face checkpoint; where there are bits, matrices but routers' have scales.
  bool has(const std::string& name) const override;
  std::uint64_t bytes(const Slice& slice) const override;
  mlx::core::array read(const Slice& slice, const OnBytes& on_bytes) const override;

 private:
  mlx::core::Dtype dtype_;
  int bits_;
  mlx::core::array values_, codes_;  // the blocks
};

}  // namespace tandem::weights
