#include "engine/step_memory.h"

#include <mlx/device.h>

#include <algorithm>

#include "base/limits.h"

namespace tandem::engine {
namespace {

namespace mx = mlx::core;

constexpr std::uint64_t float_bytes = 4;

// Numbers that one row has in flight in a layer, of whichever of its parts has most. What is split over ranks
// counts whole.
std::uint64_t row_numbers(const models::ModelConfig& config) {
  const auto& sizes = config.sizes;
  const auto heads = static_cast<std::uint64_t>(sizes.query_heads);
  const std::uint64_t head = std::max(sizes.head_dim, sizes.latent + sizes.rope);
  const std::uint64_t attention = heads * (2 * sizes.head_dim + 3 * head);
  const auto chosen = static_cast<std::uint64_t>(config.routing.chosen);
  const std::uint64_t dense = 3 * static_cast<std::uint64_t>(sizes.ffn);
  const std::uint64_t mixture = chosen * (3 * sizes.expert_ffn + 2 * sizes.hidden) + 3 * sizes.shared_ffn;
  return 6 * static_cast<std::uint64_t>(sizes.hidden) + std::max({attention, dense, mixture});
}

}  // namespace

StepMemory step_memory(const models::Decoder& model, mx::Dtype activations,
                       kernels::KeyValueFormat cache_format) {
  const bool gpu = mx::default_device() == mx::Device::gpu;
  StepMemory memory;
  const bool expands = models::expanded_from(model.config) <= model.config.context;
  models::ExpansionBytes expansion;  // all layers' alike
  std::uint64_t plain = 0;           // of the block of the largest layer
  for (const auto& layer : model.layers) {
    const auto shape =
        std::visit([](const auto& attention) { return held_shape(attention); }, layer.attention);
    if (const auto* latent = std::get_if<models::LatentAttention>(&layer.attention); latent && expands)
      expansion = expansion_bytes(*latent, activations);
    if (!gpu) {
      memory.block += kernels::KeyValuePanels(shape, cache_format).block_bytes();
      continue;
    }
    const auto block = [&](kernels::KeyValueFormat format) -> std::uint64_t {
      return kernels::block_bytes_on_gpu(shape, format, activations.size());
    };
    memory.block += block(cache_format);
    plain = std::max(plain, block(kernels::KeyValueFormat::plain));
    if (shape.values_in_keys) {
      const auto heads =
          std::visit([](const auto& attention) { return query_heads(attention); }, layer.attention);
      memory.position = limits::prefill_chunk_tokens * heads * (activations.size() + float_bytes);
    }
  }
  memory.block += 2 * plain;  // a layer's arrays are copied when they grow, and unpacked when they are read
  constexpr std::uint64_t logit_rows = limits::score_chunk_tokens + limits::batch_sequences;
  constexpr std::uint64_t rows = limits::prefill_chunk_tokens + logit_rows;
  constexpr std::uint64_t copies = 4;  // of logits: parts, gathered, float32, the vector
  const auto vocabulary = static_cast<std::uint64_t>(model.config.sizes.vocabulary);
  memory.buffers = float_bytes * (rows * row_numbers(model.config) + copies * logit_rows * vocabulary);
  memory.buffers += expansion.buffers;
  memory.position += expansion.position;
  return memory;
}

}  // namespace tandem::engine
