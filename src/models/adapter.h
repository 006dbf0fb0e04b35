// The adapters of a model's linear products, each rank its part (adapter_files.h has the files).
#pragma once

#include <filesystem>

#include "models/decoder.h"
#include "weights/shard_table.h"

namespace tandem::models {

struct AdapterSlices {
  weights::Slice down, up;  // lora_a and lora_b
};
// What belongs to this rank's part of a linear product, whose weight is the part `slice` of its tensor.
AdapterSlices adapter_slices(const ShardedLinear& linear, const weights::Slice& slice, int rank);

// Gives the model's linear products the adapters in `folder`. `model` was made from `weights`. InputError
// names the file and what is missing, of another shape, or for no product of this model.
void load_adapter(Decoder& model, const weights::ShardedWeights& weights,
                  const std::filesystem::path& folder);

}  // namespace tandem::models
