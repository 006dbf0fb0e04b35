// What `tandem quantize` makes of a model: the tensors of mlx-community's layout, as mlx-lm's sanitize and
// quantize_model have it (mlx-lm 0.32, models/deepseek_v3.py, models/qwen3_moe.py, utils.py): experts in
// stacks, V3's kv_b_proj by head as embed_q and unembed_out, every other name as it was. Norms, biases and
// routers stay as they are, and so do matrices whose inputs are no multiple of the group.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/config.h"
#include "weights/checkpoint.h"
#include "weights/safetensors_writer.h"
#include "weights/shard_table.h"

namespace tandem::models {

// --keep: matrices whose name fits the pattern, as fnmatch(3) has it, get `bits`; 16: stay as they are.
struct KeepRule {
  std::string pattern;
  int bits = 16;
};

struct QuantizeOptions {
  weights::Quantisation quantisation{4, 64};
  std::vector<KeepRule> keep;  // the last that fits counts
  std::uint64_t max_shard_bytes = 5'000'000'000;
};

// A vector, a matrix or a stack of matrices of the result.
struct LaidOut {
  enum class Part { whole, keys, values };

  std::string name;                  // with ".weight"
  std::vector<std::string> sources;  // the model's tensors: one, or one for each of a stack
  Part part = Part::whole;           // of the source, which is kv_b_proj for the others
  std::vector<std::int64_t> shape;   // unquantised
  std::string dtype;                 // unquantised: "BF16", "F16", "F32"
  std::optional<weights::Quantisation> quantisation;
  bool indivisible = false;  // would be quantised if its inputs were a multiple of the group

  bool matrix() const { return shape.size() >= 2; }
  std::string stem() const;                          // without ".weight"
  std::uint64_t piece_bytes() const;                 // unquantised, of one source's part
  std::vector<weights::TensorSpec> tensors() const;  // the one, or weight, scales and biases
  std::uint64_t bytes() const;                       // of tensors()
};

// In the order in which they are written. InputError where the model is quantised already or lacks a tensor,
// or a pattern fits nothing.
std::vector<LaidOut> quantized_layout(const ModelConfig& config, const weights::Checkpoint& source,
                                      const QuantizeOptions& options);

// Neighbours in files of at most `max_bytes`, or of one that is larger.
std::vector<std::vector<LaidOut>> cut_into_shards(const std::vector<LaidOut>& layout,
                                                  std::uint64_t max_bytes);

// The part of one source, [rows, inputs] or as it is stored, in the dtype of `tensor`.
mlx::core::array take_piece(const ModelConfig& config, const weights::ShardedWeights& weights,
                            const LaidOut& tensor, const std::string& source);

// config.json with "quantization", for mlx-lm also in "quantization_config"; and, as mlx-lm does not read
// "rope_parameters", the same in the older spelling.
nlohmann::json quantized_config(nlohmann::json config, const std::vector<LaidOut>& layout,
                                const weights::Quantisation& quantisation);

}  // namespace tandem::models
