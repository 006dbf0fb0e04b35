// The weights that training from scratch begins with, made as they are asked for.
#pragma once

#include <cstdint>

#include "weights/source.h"

namespace tandem::weights {

// float32. Matrices are normal around 0, norms are 1, biases 0. A number depends on the seed, its tensor's
// name and its place there alone, so a model begins alike on any split.
class InitialSource : public Source {
 public:
  // `deviation`: of matrices, config.json's initializer_range.
  InitialSource(double deviation, std::uint64_t seed) : deviation_(deviation), seed_(seed) {}

  // The names of a Hugging Face checkpoint without quantisation.
  bool has(const std::string& name) const override;
  std::uint64_t bytes(const Slice& slice) const override;
  mlx::core::array read(const Slice& slice, const OnBytes& on_bytes) const override;

 private:
  double deviation_;
  std::uint64_t seed_;
};

}  // namespace tandem::weights
