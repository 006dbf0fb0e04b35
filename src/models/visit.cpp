#include "models/visit.h"

#include <mlx/dtype.h>

namespace tandem::models {
namespace {

namespace mx = mlx::core;
using VisitLinear = std::function<void(ShardedLinear&)>;
using VisitArray = std::function<void(mx::array&)>;

void linears(GroupedAttention& w, const VisitLinear& visit) {
  for (auto* one : {&w.query, &w.key, &w.value, &w.output}) visit(*one);
}

void linears(LatentAttention& w, const VisitLinear& visit) {
  if (w.query_down) visit(*w.query_down);
  for (auto* one : {&w.query, &w.latent, &w.output}) visit(*one);
}

void linears(FeedForward& w, const VisitLinear& visit) {
  for (auto* one : {&w.gate, &w.up, &w.down}) visit(*one);
}

void linears(Mixture& w, const VisitLinear& visit) {
  if (w.shared) linears(*w.shared, visit);
}

void array(std::optional<mx::array>& value, const VisitArray& visit) {
  if (value && mx::issubdtype(value->dtype(), mx::floating)) visit(*value);
}

void arrays(ShardedLinear& w, const VisitArray& visit) {
  if (!w.weight.affine) array(w.weight.weight, visit);
  array(w.bias, visit);
  if (!w.adapter) return;
  array(w.adapter->down.weight, visit);
  array(w.adapter->up.weight, visit);
  array(w.adapter->gain, visit);
}

void arrays(kernels::Experts& experts, const VisitArray& visit) {
  if (!experts.affine) array(experts.weight, visit);
}

void arrays(ShardedExperts& w, const VisitArray& visit) {
  arrays(w.weight, visit);
  if (!w.adapter) return;
  arrays(w.adapter->down, visit);
  arrays(w.adapter->up, visit);
}

// What is no linear product.
void others(GroupedAttention& w, const VisitArray& visit) {
  array(w.query_norm, visit);
  array(w.key_norm, visit);
}

void others(LatentAttention& w, const VisitArray& visit) {
  array(w.query_norm, visit);
  visit(w.latent_norm);
  arrays(w.key_up, visit);
  arrays(w.value_up, visit);
}

void others(FeedForward&, const VisitArray&) {}

void others(Mixture& w, const VisitArray& visit) {
  array(w.router.weight, visit);
  array(w.router_bias, visit);
  for (auto* experts : {&w.gate, &w.up, &w.down}) arrays(*experts, visit);
}

template <class Half>
void arrays_of_half(Half& half, const VisitArray& visit) {
  linears(half, [&](ShardedLinear& w) { arrays(w, visit); });
  others(half, visit);
}

}  // namespace

void for_each_linear(DecoderLayer& layer, const VisitLinear& visit) {
  std::visit([&](auto& attention) { linears(attention, visit); }, layer.attention);
  std::visit([&](auto& ffn) { linears(ffn, visit); }, layer.ffn);
}

void for_each_experts(DecoderLayer& layer, const std::function<void(ShardedExperts&)>& visit) {
  auto* mixture = std::get_if<Mixture>(&layer.ffn);
  if (!mixture) return;
  for (auto* one : {&mixture->gate, &mixture->up, &mixture->down}) visit(*one);
}

void for_each_array(DecoderLayer& layer, const VisitArray& visit) {
  visit(layer.attention_norm);
  std::visit([&](auto& attention) { arrays_of_half(attention, visit); }, layer.attention);
  for_each_ffn_array(layer, visit);
}

void for_each_ffn_array(DecoderLayer& layer, const VisitArray& visit) {
  visit(layer.ffn_norm);
  std::visit([&](auto& ffn) { arrays_of_half(ffn, visit); }, layer.ffn);
}

}  // namespace tandem::models
