// Taking a rank's weights over, packed for a CPU where that computes them but does not train them.
#pragma once

#include <string>
#include <vector>

#include "kernels/gather_linear.h"
#include "models/layers.h"
#include "weights/shard_table.h"

namespace tandem::models {

// Computes what was made of tensors now, so that they are held no longer; not of what is trained, which a
// graph holds.
void settle(const weights::ShardedWeights& weights, std::vector<mlx::core::array> made);

// A norm's weight or a bias, in the dtype it is used in.
mlx::core::array take_vector(const weights::ShardedWeights& weights, const std::string& name);

// NAME.weight with NAME.bias, if there is one, and the reduction that its row in the shard table names.
ShardedLinear take_linear(const weights::ShardedWeights& weights, const std::string& name);

// On a GPU: products that are made of the same rows become one (kernels::join).
void join(const weights::ShardedWeights& weights, const std::vector<ShardedLinear*>& matrices);

// NAME.weight in float32, whatever it was: a router, which must choose as it was trained to.
kernels::Matrix take_float32(const weights::ShardedWeights& weights, const std::string& name);

// The matrices of experts or heads that one tensor NAME.weight holds, [E, out, in].
kernels::Experts take_stack(const weights::ShardedWeights& weights, const std::string& name);

// Experts that stand one by one: PREFIX.NUMBER.NAME.weight for the numbers of `experts`.
kernels::Experts take_experts(const weights::ShardedWeights& weights, const std::string& prefix,
                              const parallel::Range& experts, const std::string& name);

// [E, out, in], packed for a CPU.
kernels::Experts experts_from(const weights::ShardedWeights& weights, const weights::StoredMatrix& stack);

// A stored matrix as it is, or, where it is quantised, in float32, in which code times scale is exact.
mlx::core::array dense(const weights::StoredMatrix& matrix);

// Bytes of one of them.
std::size_t bytes_of_one(const kernels::Experts& experts);

}  // namespace tandem::models
