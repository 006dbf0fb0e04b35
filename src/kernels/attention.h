// Causal attention with grouped heads, of sequences of different lengths at once.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <optional>
#include <vector>

#include "kernels/gather_linear.h"
#include "kernels/key_values.h"

namespace tandem::kernels {

// The expanded form of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): each head
// has keys and values of its own, made from the latents.
struct HeadExpansion {
  Experts key_up;    // of each head [latent, nope], of its keys' part that is not rotated
  Experts value_up;  // of each head [value, latent]
};

struct AttentionHeads {
  std::vector<int> kv_of_query;  // which of the key/value heads each query head reads
  int kv_heads = 0;
  float scale = 1;  // of the scores
  int window = 0;   // positions looked back, the own one included; 0: all
  // Above 0: the values are the first numbers of the keys, that many of each head, and v is not read (the
  // absorbed form of multi-head latent attention, DeepSeek-V2, arXiv:2405.04434, section 2.1.2).
  int value_dim = 0;
  // Where there is one, of kv_heads = 1: k [T, latent + rope] is what is held, the same as in the absorbed
  // form with value_dim = latent; q is [T, Hq * (nope + rope)], the result [T, Hq * value]. Packed for a CPU.
  std::optional<HeadExpansion> expansion = {};

  // Whether query head h reads key/value head h / (Hq / kv_heads).
  bool are_even() const;
};

// The rows of one sequence. They follow what `held` holds and are appended to it; without one they stand
// alone.
struct AttentionRows {
  int tokens = 0;
  KeyValues* held = nullptr;
};

// q [T, Hq * D], k [T, Hkv * D], v [T, Hkv * Dv], the sequences' rows one after the other → [T, Hq * Dv].
// On a CPU stream all become float32; the softmax runs over blocks of keys at absolute positions, so that the
// bits of a row depend neither on its neighbours nor on how its sequence was cut into calls, and no matrix of
// scores is ever whole. (Of finite values: what is not finite in v may show in other rows of its block.) On a
// GPU stream: MLX's scaled_dot_product_attention, sequence by sequence, but one kernel for all answers where
// there is one (cuda_attention.h). Gradients by q, k and v of sequences
// that stand alone (attention_gradient.h); of an expansion by the absorbed form, which computes the same.
// std::invalid_argument where the shapes do not fit together. `held` counts the rows of a call from the call
// on: drop it when a call is never evaluated. What a call appends is there for the next one once its result
// is evaluated: evaluate before the next call on the same `held`.
mlx::core::array attention(const mlx::core::array& q, const mlx::core::array& k, const mlx::core::array& v,
                           const AttentionHeads& heads, const std::vector<AttentionRows>& sequences,
                           mlx::core::StreamOrDevice s = {});

}  // namespace tandem::kernels
