// The parts of a layer, one after the other, always in the same order.
#pragma once

#include <functional>

#include "models/decoder.h"

namespace tandem::models {

void for_each_linear(DecoderLayer& layer, const std::function<void(ShardedLinear&)>& visit);

void for_each_experts(DecoderLayer& layer, const std::function<void(ShardedExperts&)>& visit);

// The arrays that a gradient may be taken by: dense matrices that are not packed, adapters, norms and biases.
void for_each_array(DecoderLayer& layer, const std::function<void(mlx::core::array&)>& visit);
// Those of its feed-forward half.
void for_each_ffn_array(DecoderLayer& layer, const std::function<void(mlx::core::array&)>& visit);

}  // namespace tandem::models
