// In which formats a checkpoint's matrices are, as its config.json says.
#pragma once

#include <map>
#include <optional>
#include <string>

namespace tandem::weights {

// MLX's affine quantisation (mlx-community checkpoints).
struct Quantisation {
  int bits = 0;   // 4 or 8
  int group = 0;  // inputs that share a scale: 32, 64 or 128
};

// What matrices in DeepSeek's FP8 become when they are loaded.
enum class Fp8As {
  bfloat16,
  float32,   // exact
  quantised  // 8 bit, affine, groups of 64
};

struct Formats {
  std::optional<Quantisation> all;          // of a matrix that has scales and no entry of its own
  std::map<std::string, Quantisation> own;  // by the matrix's name without ".weight"
  int fp8_block = 0;                        // rows and columns that share a scale; 0: no FP8
  Fp8As fp8_as = Fp8As::bfloat16;

  // InputError where config.json has nothing for it.
  Quantisation of(const std::string& matrix) const;
  // The largest group that a matrix with this ending of its name may have; 1 without quantisation.
  int largest_group(const std::string& ending) const;
};

}  // namespace tandem::weights
