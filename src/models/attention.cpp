#include "models/attention.h"

#include <mlx/device.h>
#include <mlx/ops.h>

#include <climits>

#include "kernels/matrix.h"
#include "kernels/threads.h"
#include "models/loading.h"

namespace tandem::models {
namespace {

namespace mx = mlx::core;

constexpr float latent_eps = 1e-6F;  // of the latents' norms, whatever config.json says of the others

// What latent attention makes of x before its heads attend.
struct LatentRows {
  mx::array nope, rope;  // of the queries [T, H * nope], [T, H * rope], the latter rotated
  mx::array keys;        // [T, latent + rope]: what the cache holds

  LatentRows slice(int first, int end) const {
    const auto part = [&](const mx::array& all) { return mx::slice(all, {first, 0}, {end, all.shape(1)}); };
    return {part(nope), part(rope), part(keys)};
  }
};

// Queries go into the latent's space, so that one latent a position serves all heads as key and as value:
// [T, H * value].
mx::array absorbed(const LatentAttention& w, const LatentRows& x,
                   const std::vector<kernels::AttentionRows>& sequences) {
  const int latent = w.value_up.in();
  const mx::array queries =
      kernels::join_heads(kernels::linear_by_head(x.nope, w.key_up), latent, x.rope, w.rope);
  const kernels::AttentionHeads shared{std::vector<int>(w.value_up.count(), 0), 1, w.scale, 0, latent};
  return kernels::linear_by_head(kernels::attention(queries, x.keys, x.keys, shared, sequences), w.value_up);
}

// Each head's keys and values are made from the latents.
mx::array expanded(const LatentAttention& w, const LatentRows& x,
                   const std::vector<kernels::AttentionRows>& sequences) {
  const kernels::AttentionHeads heads{.kv_of_query = std::vector<int>(w.value_up.count(), 0),
                                      .kv_heads = 1,
                                      .scale = w.scale,
                                      .expansion = kernels::HeadExpansion{w.key_up, w.value_up}};
  const mx::array queries = kernels::join_heads(x.nope, w.nope, x.rope, w.rope);
  return kernels::attention(queries, x.keys, x.keys, heads, sequences);
}

// Rows of neighbouring sequences that take one form go together.
mx::array by_form(const LatentAttention& w, const LatentRows& x, const Pass& pass, int layer) {
  const auto all = pass.rows(layer);
  const auto is_expanded = [&](std::size_t i) { return pass.sequences[i].expanded; };
  std::vector<mx::array> parts;
  int first = 0;
  for (std::size_t i = 0, next = 0; i < all.size(); i = next) {
    std::vector<kernels::AttentionRows> some;
    int end = first;
    for (; next < all.size() && is_expanded(next) == is_expanded(i); ++next) {
      some.push_back(all[next]);
      end += all[next].tokens;
    }
    const LatentRows rows = some.size() == all.size() ? x : x.slice(first, end);
    parts.push_back(is_expanded(i) ? expanded(w, rows, some) : absorbed(w, rows, some));
    first = end;
  }
  return parts.size() == 1 ? parts.front() : mx::concatenate(parts, 0);
}

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

mx::array attend(const LatentAttention& w, const mx::array& x, const Pass& pass, int layer) {
  const int latent = w.value_up.in(), head_dim = w.nope + w.rope;
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
  const LatentRows rows{kernels::head_part(q, head_dim, 0, w.nope), turned[0],
                        kernels::join_heads(c, latent, turned[1], w.rope)};
  return products(by_form(w, rows, pass, layer), {&w.output}).front();
}

int expanded_from(const ModelConfig& config) {
  const std::int64_t latent = config.sizes.latent, value = config.sizes.value_dim,
                     nope = config.sizes.head_dim - config.sizes.rope;
  const std::int64_t saved = 2 * latent - nope - value;  // of each row with each position
  if (latent == 0 || saved <= 0) return INT_MAX;
  return static_cast<int>(latent * (nope + value) / saved) + 1;
}

ExpansionBytes expansion_bytes(const LatentAttention& w, mx::Dtype activations) {
  const std::uint64_t heads = w.value_up.count(), latent = w.value_up.in(), value = w.value_up.out(),
                      nope = w.nope, rope = w.rope;
  if (!kernels::on_cpu())
    return {0, heads * (2 * nope + rope + value) * activations.size()};  // a key is joined of two parts
  // The keys' weights turned over, and a block of keys and values for each thread; the latents laid out as
  // kernels/expanded_attention.h says.
  const std::uint64_t blocks = kernels::threads() * kernels::KeyValuePanels::block * (nope + rope + value);
  return {sizeof(float) * (heads * nope * latent + blocks), sizeof(float) * (3 * latent + 2 * rope)};
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
