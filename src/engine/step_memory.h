// How much memory the steps of a rank take besides its weights.
#pragma once

#include <mlx/dtype.h>

#include <cstdint>

#include "models/decoder.h"

namespace tandem::engine {

// Bytes.
struct StepMemory {
  // Of the cache, for cache_block_tokens positions of one sequence: caches grow in such steps.
  std::uint64_t block = 0;
  // Of what the largest step holds at once: activations and logits. Estimated, from above.
  std::uint64_t buffers = 0;
  // Of what a prompt's chunk holds for each position that it sees, in latent attention alone: what the
  // expanded form makes of latents, and on a GPU the scores, for no kernel of MLX attends without holding
  // them.
  std::uint64_t position = 0;
};

inline constexpr int cache_block_tokens = kernels::KeyValuePanels::block;

// On MLX's default device, with activations of that type.
StepMemory step_memory(const models::Decoder& model, mlx::core::Dtype activations,
                       kernels::KeyValueFormat cache_format);

}  // namespace tandem::engine
