// The adapters of a model's linear products and experts, each rank its part (adapter_files.h has the files).
#pragma once

#include <filesystem>

#include "models/decoder.h"
#include "weights/shard_table.h"

namespace tandem::models {

struct AdapterSlices {
  weights::Slice down, up;   // lora_a and lora_b
  weights::Slice magnitude;  // m, of DoRA
};
// What belongs to this rank's part of a linear product, whose weight is the part `slice` of its tensor.
AdapterSlices adapter_slices(const ShardedLinear& linear, const weights::Slice& slice, int rank);
AdapterSlices adapter_slices(const ShardedExperts& experts, int rank);

// The norm of each row of weight + scale · up · down of an adapted product, over the inputs of all ranks of
// `group`: [out] float32, not evaluated. `squares`: kernels::row_squares() of its weight.
mlx::core::array adapted_norms(const ShardedLinear& linear, const mlx::core::array& squares,
                               const Group& group);

// Gives the model's linear products and experts the adapters in `folder`. `model` was made from `weights`,
// `group` has the ranks that share its matrices. InputError names the file and what is missing, of another
// shape, or for no product of this model.
void load_adapter(Decoder& model, const weights::ShardedWeights& weights, const std::filesystem::path& folder,
                  const Group& group);
// Computes what of them the ranks of the group have only together. Every rank calls it, once all have loaded.
void complete_adapter(Decoder& model);

}  // namespace tandem::models
