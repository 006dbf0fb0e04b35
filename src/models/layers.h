// The layers that families share. Each is a plain function of loaded weights and inputs; how a matrix is
// split is written in its weights (ShardedLinear::reduce), so no layer knows of ranks.
#pragma once

#include <mlx/array.h>
#include <mlx/distributed/distributed.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels/matrix.h"
#include "kernels/pointwise.h"
#include "models/config.h"
#include "models/kv_cache.h"
#include "parallel/shard.h"

namespace tandem::models {

using Group = mlx::core::distributed::Group;

// What every layer is given besides its weights and inputs.
struct Context {
  Group group;  // the ranks that share this stage's matrices
  // Activations' dtype: float32 on CPU, the weights' on GPU.
  mlx::core::Dtype activations = mlx::core::float32;
  // Of training: what V3's loss of a sequence's balance (kernels/sequence_balance.h) is multiplied by.
  float balance_loss = 0;
};

// Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) of a matrix: its part that belongs to this rank's
// part of the matrix. Where the matrix is cut by outputs, `down` is whole, where by inputs, `up`.
// With weight-decomposition (DoRA, Liu et al. 2024, arXiv:2402.09353) a gain multiplies the sum of both
// products.
struct Adapter {
  kernels::Matrix down;  // [rank, in]
  kernels::Matrix up;    // [out, rank]
  float scale = 1;
  // Of DoRA: magnitudes over norms of the rows, all of their inputs, of weight + scale · up · down. [out]
  std::optional<mlx::core::array> gain = {};
};

struct ShardedLinear {
  kernels::Matrix weight;  // [out, in], this rank's part
  std::optional<mlx::core::array> bias;
  parallel::Reduce reduce = parallel::Reduce::none;
  std::vector<int> parts;  // rows of each rank, for Reduce::gather
  std::string name = {};   // its tensor's, without ".weight"
  std::optional<Adapter> adapter = {};
};

// With the bias.
std::size_t bytes_of(const ShardedLinear& w);

// x [T, in] → this rank's part of each product, for which x is prepared once. The bias of a matrix without
// reduction is added.
std::vector<mlx::core::array> products(const mlx::core::array& x,
                                       const std::vector<const ShardedLinear*>& matrices);
// The whole product from every rank's part, with the bias: [T, out].
mlx::core::array reduced(const mlx::core::array& part, const ShardedLinear& w, const Context& context);

// Rows of an embedding whose vocabulary is split: ids [T] → [T, hidden]. `first_id` is the id of row 0.
mlx::core::array embed(const mlx::core::array& ids, const ShardedLinear& w, int first_id,
                       const Context& context);

// Rotary embedding.
struct Rope {
  mlx::core::array wavelengths;  // [dims / 2] float32: base^(2i/dims), stretched
  float attention_factor = 1;
  bool pairs = false;  // kernels::Angles::pairs
};
// Of `dims` turned numbers a head.
Rope make_rope(const RopeConfig& config, int dims, bool pairs);
// The position of each row of a step.
std::vector<int> positions_of(const std::vector<SequenceRows>& sequences);
kernels::Angles angles(const Rope& rope, const std::vector<int>& positions);

}  // namespace tandem::models
