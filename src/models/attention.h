// The two kinds of attention that families have, each this rank's heads.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/attention.h"
#include "kernels/gather_linear.h"
#include "models/layers.h"

namespace tandem::models {

// What a forward pass gives each of its layers.
struct Pass {
  kernels::Angles angles;
  const std::vector<SequenceRows>& sequences;
  float eps;                                // of norms
  std::vector<float> balance_weights = {};  // of each sequence's balance in the loss; none: there is none

  std::vector<kernels::AttentionRows> rows(int layer) const;
};

// Heads that share keys and values in groups (Ainslie et al. 2023, arXiv:2305.13245).
struct GroupedAttention {
  ShardedLinear query, key, value, output;
  std::optional<mlx::core::array> query_norm, key_norm;
  std::vector<int> kv_of_query;  // which local key/value head each local query head reads
  int head_dim = 0;
  float scale = 1;
  int window = 0;
};

// Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): keys and values of all heads come
// from one latent a token, which is what the cache holds, followed by the key's rotated part.
struct LatentAttention {
  std::optional<ShardedLinear> query_down;  // none: queries are not compressed
  std::optional<mlx::core::array> query_norm;
  ShardedLinear query;   // [heads * (nope + rope), …]
  ShardedLinear latent;  // [latent + rope, hidden]
  mlx::core::array latent_norm;
  kernels::Experts key_up;    // of each head, from the part of the query that is not rotated: [latent, nope]
  kernels::Experts value_up;  // of each head [value, latent]
  ShardedLinear output;
  int nope = 0, rope = 0;
  float scale = 1;
};

// x [T, hidden], normed → this rank's part of the attention's output [T, hidden]. `layer` is that of the
// cache.
mlx::core::array attend(const GroupedAttention& w, const mlx::core::array& x, const Pass& pass, int layer);
mlx::core::array attend(const LatentAttention& w, const mlx::core::array& x, const Pass& pass, int layer);

// How many tokens a prompt must have for its rows to take latent attention's expanded form, in which each
// head has keys and values of its own, rather than the absorbed one; INT_MAX: none does. It must depend on
// nothing but the prompt, for the two forms differ in rounding.
//
// Products of one head, for a chunk of n rows that see p positions, with a latent of L numbers, keys of N + R
// and values of V:
//   absorbed  n p (2 L + R)                     scores [n, L + R] · [L + R, p], sums [n, p] · [p, L]
//   expanded  p L (N + V) + n p (N + R + V)     keys and values [p, L] · [L, N + V], anew for each chunk
// so that chunks of more than L (N + V) / (2 L - N - V) rows are cheaper expanded: 170 for L = 512, N = V =
// 128, which DeepSeek's models have; of a chunk of 512 it costs 0.53. A prompt that is longer goes in chunks
// that are larger, but for its last and what its neighbours leave of a step.
int expanded_from(const ModelConfig& config);

// What it takes besides what the absorbed form does.
struct ExpansionBytes {
  std::uint64_t buffers = 0;
  std::uint64_t position = 0;  // for each position that a prompt's chunk sees
};
// On MLX's default device, with activations of that type.
ExpansionBytes expansion_bytes(const LatentAttention& w, mlx::core::Dtype activations);

// What a rank's cache holds of a position, and how many heads read it.
kernels::KeyValueShape held_shape(const GroupedAttention& w);
kernels::KeyValueShape held_shape(const LatentAttention& w);
inline int query_heads(const GroupedAttention& w) { return static_cast<int>(w.kv_of_query.size()); }
inline int query_heads(const LatentAttention& w) { return w.value_up.count(); }

// Bytes of the weights that one token reads.
std::size_t step_bytes(const GroupedAttention& w);
std::size_t step_bytes(const LatentAttention& w);

}  // namespace tandem::models
