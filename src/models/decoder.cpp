#include "models/decoder.h"

#include "kernels/fused.h"
#include "parallel/collectives.h"

namespace tandem::models {
namespace {

namespace mx = mlx::core;

const ShardedLinear& output_of(const DecoderLayer& layer) {
  return std::visit([](const auto& attention) -> const ShardedLinear& { return attention.output; },
                    layer.attention);
}

mx::array attend(const DecoderLayer& layer, const mx::array& x, const Pass& pass, int index) {
  return std::visit([&](const auto& attention) { return attend(attention, x, pass, index); },
                    layer.attention);
}

mx::array feed_forward(const DecoderLayer& layer, const mx::array& x, const Pass& pass) {
  if (const auto* mixture = std::get_if<Mixture>(&layer.ffn))
    return feed_forward(*mixture, x, pass.sequences, pass.balance_weights);
  return feed_forward(std::get<FeedForward>(layer.ffn), x);
}

// The sum over ranks of a feed-forward's parts, with the bias that a dense one may have.
mx::array reduced_ffn(const mx::array& part, const DecoderLayer& layer, const Context& context) {
  if (const auto* dense = std::get_if<FeedForward>(&layer.ffn)) return reduced(part, dense->down, context);
  return parallel::sum(part, context.group);
}

// Of rows that every rank has, for products of which each has a part.
mx::array normed_rows(const mx::array& x, const mx::array& norm, const Pass& pass, const Context& context) {
  return parallel::summed_gradient(kernels::rms_norm(x, norm, pass.eps), context.group);
}

}  // namespace

std::size_t step_bytes(const Decoder& model) {
  std::size_t sum = model.output ? model.norm->nbytes() + bytes_of(*model.output) : 0;
  for (const auto& layer : model.layers) {
    sum += layer.attention_norm.nbytes() + layer.ffn_norm.nbytes();
    sum += std::visit([](const auto& attention) { return step_bytes(attention); }, layer.attention);
    sum += std::visit([](const auto& ffn) { return step_bytes(ffn); }, layer.ffn);
  }
  return sum;
}

mx::array embed(const Decoder& model, const mx::array& ids, const Context& context) {
  return embed(ids, *model.embedding, model.first_id, context);
}

mx::array forward(const Decoder& model, const mx::array& input, const std::vector<SequenceRows>& sequences,
                  const Context& context) {
  const float eps = model.config.rms_norm_eps;
  const Pass pass{angles(model.rope, positions_of(sequences)), sequences, eps};
  mx::array x = input;  // [T, hidden]
  mx::array normed = kernels::rms_norm(x, model.layers.front().attention_norm, eps);
  const int layers = static_cast<int>(model.layers.size());
  for (int i = 0; i < layers; ++i) {
    const DecoderLayer& layer = model.layers[i];
    // Between two reductions all is one operation.
    const auto first = kernels::fused({x, attend(layer, normed, pass, i)});
    const auto attended =
        kernels::add_rms_norm(first[0], reduced(first[1], output_of(layer), context), layer.ffn_norm, eps);
    const auto second = kernels::fused({attended.sum, feed_forward(layer, attended.norm, pass)});
    const mx::array part = reduced_ffn(second[1], layer, context);
    const bool last = i + 1 == layers;
    if (last && !model.norm) return kernels::add(second[0], part);
    const auto fed =
        kernels::add_rms_norm(second[0], part, last ? *model.norm : model.layers[i + 1].attention_norm, eps);
    x = fed.sum;
    normed = fed.norm;
  }
  return normed;
}

mx::array attention_output(const DecoderLayer& layer, const mx::array& x, const Pass& pass, int index,
                           const Context& context) {
  const mx::array normed = normed_rows(x, layer.attention_norm, pass, context);
  return kernels::add(x, reduced(attend(layer, normed, pass, index), output_of(layer), context));
}

mx::array ffn_output(const DecoderLayer& layer, const mx::array& x, const Pass& pass,
                     const Context& context) {
  const mx::array normed = normed_rows(x, layer.ffn_norm, pass, context);
  return kernels::add(x, reduced_ffn(feed_forward(layer, normed, pass), layer, context));
}

mx::array logits(const Decoder& model, const mx::array& hidden, const Context& context) {
  return reduced(products(hidden, {&*model.output}).front(), *model.output, context);
}

}  // namespace tandem::models
