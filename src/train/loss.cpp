#include "train/loss.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <functional>
#include <memory>

#include "kernels/log_sum_exp.h"
#include "kernels/matrix.h"
#include "models/visit.h"
#include "parallel/collectives.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;
using models::Context;
using models::Decoder;
using models::DecoderLayer;

constexpr int chunk_tokens = 512;

// What a layer needs of the pass, kept for as long as gradients are taken.
struct Going {
  // `scored`: of each sequence, how many tokens count.
  Going(const Decoder& model, std::vector<models::SequenceRows> rows, const std::vector<int>& scored,
        const Context& context)
      : sequences(std::move(rows)),
        pass{models::angles(model.rope, models::positions_of(sequences)), sequences,
             model.config.rms_norm_eps},
        context(context) {
    if (context.balance_loss <= 0) return;
    for (const int count : scored)
      pass.balance_weights.push_back(context.balance_loss * static_cast<float>(count));
  }
  Going(const Going&) = delete;
  Going& operator=(const Going&) = delete;

  std::vector<models::SequenceRows> sequences;
  models::Pass pass;  // refers to sequences
  Context context;
};

using Arrays = std::vector<mx::array>;

// The values as they are; before the gradient by any of those that have one is used, all are there. MLX would
// compute the gradients by weights last, after the whole backward, and keep what they are made of until then.
Arrays together(Arrays values) {
  Arrays learnt;
  for (const auto& value : values)
    if (value.is_tracer()) learnt.push_back(value);
  if (learnt.empty()) return values;
  const auto same = [](const Arrays& in) { return in; };
  learnt = mx::custom_vjp(same, [](const Arrays&, const Arrays& cotangents, const Arrays&) {
    return mx::depends(cotangents, cotangents);
  })(learnt);
  auto next = learnt.begin();
  for (auto& value : values)
    if (value.is_tracer()) value = *next++;
  return values;
}

// Of what `part` computes its inputs alone are kept (Chen et al. 2016, arXiv:1604.06174). It is computed anew
// only once the backward is there: earlier, its arrays would stand beside the next layer's, and its sums over
// ranks might come in another order than on another device. A GPU alone is 5 % faster if it may (7B).
std::function<Arrays(const Arrays&)> recomputed(const std::function<Arrays(const Arrays&)>& part,
                                                const Context& context) {
  if (!kernels::on_cpu() && context.group.size() == 1) return mx::checkpoint(part);
  return mx::custom_vjp(part, [part](const Arrays& inputs, const Arrays& cotangents, const Arrays&) {
    return mx::vjp(part, mx::depends(inputs, cotangents), cotangents).second;
  });
}

// What a layer makes of its input and of what is learnt in it.
mx::array computed(const std::function<Arrays(const Arrays&)>& layer, const Arrays& inputs,
                   const Context& context, bool recompute) {
  const Arrays values = together(inputs);
  return (recompute ? recomputed(layer, context)(values) : layer(values)).front();
}

// On a CPU the gradients by the weights of its second half are made before the
// backward goes on to the first, which has large arrays too. A GPU is faster with several products at once
// (7B: 10 %).
mx::array by_halves(DecoderLayer layer, const mx::array& x, int index, const Going& going) {
  Arrays between{models::attention_output(layer, x, going.pass, index, going.context)};
  if (kernels::on_cpu()) {
    models::for_each_ffn_array(layer, [&](const mx::array& array) { between.push_back(array); });
    between = together(between);
    std::size_t next = 1;
    models::for_each_ffn_array(layer, [&](mx::array& array) { array = between[next++]; });
  }
  return models::ffn_output(layer, between.front(), going.pass, going.context);
}

mx::array layer_output(const DecoderLayer& layer, const mx::array& x, int index,
                       const std::shared_ptr<const Going>& going, bool recompute) {
  DecoderLayer copy = layer;
  Arrays inputs{x};
  std::vector<bool> is_learnt;
  models::for_each_array(copy, [&](mx::array& array) {
    is_learnt.push_back(array.is_tracer());
    if (is_learnt.back()) inputs.push_back(array);
  });
  const auto output = [layer, is_learnt, index, going](const Arrays& in) {
    DecoderLayer own = layer;
    std::size_t at = 0, next = 1;
    models::for_each_array(own, [&](mx::array& array) {
      if (is_learnt[at++]) array = in[next++];
    });
    return Arrays{by_halves(std::move(own), in.front(), index, *going)};
  };
  return computed(output, inputs, going->context, recompute);
}

// The layer, made where its output is; recomputed, of its weights only the parts that are here are kept too.
mx::array made_and_computed(const MadeLayers& made, const mx::array& x, int index,
                            const std::shared_ptr<const Going>& going, bool recompute) {
  const auto output = [make = made.layer, index, going](const Arrays& in) {
    return Arrays{by_halves(make(index, {in.begin() + 1, in.end()}, in.front()), in.front(), index, *going)};
  };
  Arrays inputs{x};
  inputs.insert(inputs.end(), made.weights[index].begin(), made.weights[index].end());
  return computed(output, inputs, going->context, recompute);
}

// [T, hidden] of the layers.
mx::array through_layers(const TrainedModel& trained, mx::array x, const std::shared_ptr<const Going>& going,
                         int recomputed_every) {
  const auto& [model, made] = trained;
  const auto recompute = [&](int layer) { return recomputed_every > 0 && layer % recomputed_every == 0; };
  for (int i = 0; made && i < model.config.layers; ++i)
    x = mx::astype(made_and_computed(*made, x, i, going, recompute(i)), going->context.activations);
  for (int i = 0; i < static_cast<int>(model.layers.size()); ++i)
    x = mx::astype(layer_output(model.layers[i], x, i, going, recompute(i)), going->context.activations);
  return x;
}

// Of some tokens: hidden [n, hidden], targets [n] int32. The vocabulary is split.
mx::array nll_of(const models::ShardedLinear& output, int first_id, const mx::array& hidden,
                 const mx::array& targets, const Context& context) {
  const auto& group = context.group;
  const mx::array input = parallel::summed_gradient(hidden, group);
  const mx::array logits = models::products(input, {&output}).front();
  const auto here = kernels::log_sum_exp(logits, mx::subtract(targets, mx::array(first_id)));
  const mx::array largest = mx::stop_gradient(parallel::max(mx::stop_gradient(here.log_sum), group));
  // Both sums over ranks at once.
  const mx::array sums =
      parallel::sum(mx::stack({mx::exp(mx::subtract(here.log_sum, largest)), here.chosen}), group);
  const mx::array all = mx::add(mx::log(mx::take(sums, 0, 0)), largest);
  return mx::sum(mx::subtract(all, mx::take(sums, 1, 0)));
}

// The same, computed anew for the gradient.
mx::array recomputed_nll(const Decoder& model, const mx::array& hidden, const mx::array& targets,
                         const Context& context) {
  const models::ShardedLinear output = *model.output;
  const bool dense = output.weight.weight && !output.weight.affine && !output.weight.packed;
  const Arrays inputs = dense ? Arrays{hidden, *output.weight.weight} : Arrays{hidden};
  const auto nll = [=, first_id = model.first_id](const std::vector<mx::array>& in) {
    models::ShardedLinear own = output;
    if (dense) own.weight.weight = in[1];
    return std::vector{nll_of(own, first_id, in[0], targets, context)};
  };
  return recomputed(nll, context)(together(inputs)).front();
}

// Of the rows [T, hidden] that `targets` follow.
mx::array nll_of_rows(const Decoder& model, const mx::array& rows, std::vector<int> scored_rows,
                      std::vector<int> targets, const Context& context) {
  const bool none = targets.empty();  // what is computed all the same: ranks wait for one another's parts
  if (none) scored_rows = targets = {0};
  const int count = static_cast<int>(targets.size());
  const mx::array scored =
      count == rows.shape(0) ? rows : mx::take(rows, mx::array(scored_rows.data(), {count}, mx::int32), 0);
  const mx::array hidden = kernels::rms_norm(scored, *model.norm, model.config.rms_norm_eps);
  mx::array sum(0.0F);
  for (int first = 0; first < count; first += chunk_tokens) {
    const int end = std::min(count, first + chunk_tokens);
    sum = mx::add(sum, recomputed_nll(model, mx::slice(hidden, {first, 0}, {end, hidden.shape(1)}),
                                      mx::array(targets.data() + first, {end - first}, mx::int32), context));
  }
  return none ? mx::multiply(sum, mx::array(0.0F)) : sum;
}

}  // namespace

int scored_tokens(const std::vector<Sequence>& sequences) {
  int count = 0;
  for (const auto& one : sequences)
    count += std::max(0, static_cast<int>(one.ids.size()) - std::max(1, one.loss_from));
  return count;
}

int input_rows(const std::vector<Sequence>& sequences) {
  int count = 0;
  for (const auto& one : sequences) count += one.rows();
  return count;
}

mx::array summed_nll(const TrainedModel& model, const std::vector<Sequence>& sequences,
                     const Context& context, int recomputed_every) {
  return stage_output(model, sequences, std::nullopt, context, recomputed_every);
}

mx::array stage_output(const TrainedModel& trained, const std::vector<Sequence>& sequences,
                       const std::optional<mx::array>& input, const Context& context, int recomputed_every) {
  std::vector<int> ids, targets, scored;
  std::vector<int> scored_rows;  // those that the targets follow
  std::vector<models::SequenceRows> rows;
  for (const auto& one : sequences) {
    const int inputs = one.rows();
    if (inputs < 1) continue;
    rows.push_back({inputs, nullptr});
    scored.push_back(scored_tokens({one}));
    const int first = static_cast<int>(ids.size());
    for (int t = std::max(1, one.loss_from); t <= inputs; ++t) {
      targets.push_back(one.ids[t]);
      scored_rows.push_back(first + t - 1);
    }
    ids.insert(ids.end(), one.ids.begin(), one.ids.end() - 1);
  }
  const int tokens = static_cast<int>(ids.size());
  if (tokens == 0) return mx::array(0.0F);
  Decoder model = trained.decoder;
  const auto going = std::make_shared<const Going>(model, std::move(rows), scored, context);
  const mx::array first_rows =
      input ? *input : models::embed(model, mx::array(ids.data(), {tokens}, mx::int32), context);
  const mx::array last_rows = through_layers(trained, first_rows, going, recomputed_every);
  if (trained.made) trained.made->add_output(model, last_rows);
  if (!model.norm) return last_rows;
  return nll_of_rows(model, last_rows, scored_rows, targets, context);
}

}  // namespace tandem::train
