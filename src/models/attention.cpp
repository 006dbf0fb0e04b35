#include "models/attention.h"

#include "models/loading.h"

namespace tandem::models {
namespace {

namespace mx = mlx::core;

constexpr float latent_eps = 1e-6F;  // of the latents' norms, whatever config.json says of the others

}  // namespace

std::vector<kernels::AttentionRows> Pass::rows(int layer) const {
  std::vector<kernels::AttentionRows> all;
  for (const auto& one : sequences)
    all.push_back({one.tokens, one.cache ? &one.cache->layer(layer) : nullptr});
  return all;
}

mx::array attend(const GroupedAttention& w, const mx::array& x, const Pass& pass, int layer) {
  const auto projected = products(x, {&w.query, &w.key, &w.value});
  mx::array q = projected[0], k = projected[1];  // [T, Hq * D], [T, Hkv * D]
  if (w.query_norm) q = kernels::rms_norm(q, *w.query_norm, pass.eps);
  if (w.key_norm) k = kernels::rms_norm(k, *w.key_norm, pass.eps);
  const auto rotated = kernels::rotate({q, k}, pass.angles, w.head_dim);
  const kernels::AttentionHeads heads{w.kv_of_query, k.shape(1) / w.head_dim, w.scale, w.window};
  const mx::array y =
      kernels::attention(rotated[0], rotated[1], projected[2], heads, pass.rows(layer));  // [T, Hq * D]
  return products(y, {&w.output}).front();
}

// In the absorbed form: queries go into the latent's space, so that one latent a position serves all heads as
// key and as value.
mx::array attend(const LatentAttention& w, const mx::array& x, const Pass& pass, int layer) {
  const int latent = w.value_up.in(), heads = w.value_up.count(), head_dim = w.nope + w.rope;
  const auto down =
      w.query_down ? products(x, {&w.latent, &*w.query_down}) : products(x, {&w.latent, &w.query});
  const mx::array c =
      kernels::rms_norm(kernels::head_part(down[0], latent + w.rope, 0, latent), w.latent_norm,
                        latent_eps);  // [T, latent]
  const mx::array q =
      w.query_down ? products(kernels::rms_norm(down[1], *w.query_norm, latent_eps), {&w.query}).front()
                   : down[1];  // [T, H * (nope + rope)]
  const auto turned = kernels::rotate({kernels::head_part(q, head_dim, w.nope, head_dim),
                                       kernels::head_part(down[0], latent + w.rope, latent, latent + w.rope)},
                                      pass.angles, w.rope);
  const mx::array absorbed = kernels::linear_by_head(kernels::head_part(q, head_dim, 0, w.nope), w.key_up);
  const mx::array queries =
      kernels::join_heads(absorbed, latent, turned[0], w.rope);              // [T, H * (latent + rope)]
  const mx::array keys = kernels::join_heads(c, latent, turned[1], w.rope);  // [T, latent + rope]
  const kernels::AttentionHeads shared{std::vector<int>(heads, 0), 1, w.scale, 0, latent};
  const mx::array y = kernels::attention(queries, keys, keys, shared, pass.rows(layer));  // [T, H * latent]
  return products(kernels::linear_by_head(y, w.value_up), {&w.output}).front();
}

kernels::KeyValueShape held_shape(const GroupedAttention& w) {
  const int heads = w.key.weight.out() / w.head_dim;
  return {heads, w.head_dim, w.value.weight.out() / heads};
}

kernels::KeyValueShape held_shape(const LatentAttention& w) {
  return {1, w.value_up.in() + w.rope, w.value_up.in(), /*values_in_keys=*/true};
}

std::size_t step_bytes(const GroupedAttention& w) {
  std::size_t sum = bytes_of(w.query) + bytes_of(w.key) + bytes_of(w.value) + bytes_of(w.output);
  for (const auto* norm : {&w.query_norm, &w.key_norm}) sum += *norm ? (*norm)->nbytes() : 0;
  return sum;
}

std::size_t step_bytes(const LatentAttention& w) {
  const auto heads = static_cast<std::size_t>(w.value_up.count());
  return (w.query_down ? bytes_of(*w.query_down) + w.query_norm->nbytes() : 0) + bytes_of(w.query) +
         bytes_of(w.latent) + w.latent_norm.nbytes() + bytes_of(w.output) +
         heads * (bytes_of_one(w.key_up) + bytes_of_one(w.value_up));
}

}  // namespace tandem::models
