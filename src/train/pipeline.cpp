#include "train/pipeline.h"

#include <mlx/ops.h>
#include <mlx/primitives.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <deque>
#include <memory>

#include "parallel/messages.h"

namespace tandem::train {
namespace {

namespace mx = mlx::core;

// An array whose value is known only later, but before it is computed.
class Awaited : public mx::Primitive {
 public:
  Awaited(mx::Stream stream, std::shared_ptr<std::optional<mx::array>> value)
      : Primitive(stream), value_(std::move(value)) {}

  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>& outputs) override { take(outputs); }
  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>& outputs) override { take(outputs); }
  const char* name() const override { return "TandemAwaited"; }

 private:
  void take(std::vector<mx::array>& outputs) const { outputs.front().copy_shared_buffer(value_->value()); }

  std::shared_ptr<std::optional<mx::array>> value_;
};

using Rows = std::optional<mx::array>;  // [T, hidden]

}  // namespace

// A micro-batch between its forward and its backward.
struct Pipeline::UnderWay {
  mx::array output;
  std::vector<mx::array> gradients;  // not computed yet; the input's the last, where the stage has one
  std::shared_ptr<std::optional<mx::array>> output_gradient = std::make_shared<std::optional<mx::array>>();
};

// One rank's way through the micro-batches of a step.
class Pipeline::Step {
 public:
  Step(const Pipeline& pipeline, Trainable& trainable, float scale, int recomputed_every)
      : pipeline_(pipeline),
        trainable_(trainable),
        scale_(scale),
        recomputed_every_(recomputed_every),
        sums_{mx::array(0.0F), {}} {}

  Sums run(const std::vector<std::vector<Sequence>>& batches) {
    const int count = static_cast<int>(batches.size());
    const int ahead = std::min(count, place().stages - 1 - place().stage);
    Rows input = receive(batches, 0);
    for (int i = 0; i < ahead; ++i) {
      forward(batches[i], input);
      pass_on(under_way_.back().output, {});
      input = receive(batches, i + 1);
    }
    for (int i = ahead; i < count; ++i) {
      forward(batches[i], input);
      const Rows gradient = buffer(place().gradient_source, batches[i - ahead]);
      pass_on(under_way_.back().output, gradient);
      const Rows back = backward(gradient);
      input = i + 1 < count ? buffer(place().source, batches[i + 1]) : std::nullopt;
      pass_back(back, input);
    }
    for (int i = count - ahead; i < count; ++i) {
      const Rows gradient = buffer(place().gradient_source, batches[i]);
      pass_on(std::nullopt, gradient);
      pass_back(backward(gradient), {});
    }
    return std::move(sums_);
  }

 private:
  const parallel::Place& place() const { return pipeline_.place_; }

  // For rows of the micro-batch from another rank; nothing where there is none.
  Rows buffer(int source, const std::vector<Sequence>& batch) const {
    return source < 0 ? Rows() : pipeline_.row_buffer(batch);
  }

  Rows receive(const std::vector<std::vector<Sequence>>& batches, int index) const {
    if (index >= static_cast<int>(batches.size())) return std::nullopt;
    Rows rows = buffer(place().source, batches[index]);
    pass_back({}, rows);
    return rows;
  }

  void forward(const std::vector<Sequence>& batch, const Rows& input) {
    std::vector<mx::array> primals = trainable_.values();
    if (input) primals.push_back(*input);
    models::Context stage = pipeline_.stage_;
    stage.balance_loss *= scale_;
    const auto output = [&](const std::vector<mx::array>& values) {
      const std::vector parameters(values.begin(), values.end() - (input ? 1 : 0));
      const mx::array made = stage_output(trainable_.model(parameters), batch,
                                          input ? Rows(values.back()) : Rows(), stage, recomputed_every_);
      return std::vector{place().last() && scale_ != 1 ? mx::multiply(made, mx::array(scale_)) : made};
    };
    if (primals.empty()) {  // nothing to learn here, nor before
      under_way_.push_back({output(primals).front(), {}});
    } else if (place().last()) {
      auto [outputs, gradients] = mx::vjp(output, primals, {mx::array(1.0F)});
      under_way_.push_back({outputs.front(), std::move(gradients)});
    } else {
      UnderWay one{mx::array(0.0F), {}};
      const mx::Shape shape{input_rows(batch), pipeline_.hidden_};
      const mx::array awaited(
          shape, pipeline_.stage_.activations,
          std::make_shared<Awaited>(mx::default_stream(mx::default_device()), one.output_gradient), {});
      auto [outputs, gradients] = mx::vjp(output, primals, {awaited});
      one.output = outputs.front();
      one.gradients = std::move(gradients);
      under_way_.push_back(std::move(one));
    }
    if (!place().last()) under_way_.back().output.eval();
  }

  // Of the oldest micro-batch under way, given its output's gradient; that of its input.
  Rows backward(const Rows& gradient) {
    UnderWay one = std::move(under_way_.front());
    under_way_.pop_front();
    if (gradient) *one.output_gradient = *gradient;
    Rows back;
    if (!place().first() && !one.gradients.empty()) {
      back = one.gradients.back();
      one.gradients.pop_back();
    }
    auto& sums = sums_.gradients;
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] = mx::add(sums[i], one.gradients[i]);
    if (sums.empty()) sums = std::move(one.gradients);
    if (place().last()) sums_.nll = mx::add(sums_.nll, one.output);
    std::vector<mx::array> all = sums;
    all.push_back(sums_.nll);
    if (back) all.push_back(*back);
    mx::eval(all);
    return back;
  }

  // Rows to the next stage, while their gradients come from there.
  void pass_on(const Rows& rows, const Rows& gradients) const {
    pipeline_.exchange(place().targets, rows, place().gradient_source, gradients);
  }
  // Gradients to the stage before, while rows come from there.
  void pass_back(const Rows& gradients, const Rows& rows) const {
    pipeline_.exchange(place().gradient_targets, gradients, place().source, rows);
  }

  const Pipeline& pipeline_;
  Trainable& trainable_;
  float scale_;
  int recomputed_every_;
  std::deque<UnderWay> under_way_;
  Sums sums_;
};

Pipeline::Pipeline(models::Group world, parallel::Place place, models::Context stage, int hidden)
    : world_(std::move(world)), place_(std::move(place)), stage_(std::move(stage)), hidden_(hidden) {}

mx::array Pipeline::row_buffer(const std::vector<Sequence>& batch) const {
  mx::array rows = mx::zeros({input_rows(batch), hidden_}, stage_.activations, mx::Device::cpu);
  rows.eval();
  return rows;
}

void Pipeline::exchange(const std::vector<int>& targets, const Rows& outgoing, int source,
                        Rows incoming) const {
  Rows sent;
  std::optional<std::span<const char>> given;
  std::optional<std::span<char>> taken;
  if (outgoing) {
    sent = mx::contiguous(mx::astype(*outgoing, stage_.activations));
    sent->eval();
    given = {sent->data<char>(), sent->nbytes()};
  }
  if (incoming) taken = {incoming->data<char>(), incoming->nbytes()};
  parallel::hand_over(world_, targets, given, source, taken);
}

Sums Pipeline::run(Trainable& trainable, const std::vector<std::vector<Sequence>>& micro_batches, float scale,
                   int recomputed_every) const {
  return Step(*this, trainable, scale, recomputed_every).run(micro_batches);
}

mx::array Pipeline::evaluate(Trainable& trainable, const std::vector<Sequence>& sequences) const {
  if (input_rows(sequences) == 0) return mx::array(0.0F);
  Rows input;
  if (!place_.first()) input = row_buffer(sequences);
  exchange({}, {}, place_.source, input);
  mx::array output =
      stage_output(trainable.model(trainable.values()), sequences, input, stage_, /*recomputed_every=*/0);
  output.eval();  // on every rank of the stage, whose sums it needs
  if (place_.last()) return output;
  exchange(place_.targets, output, -1, {});
  return mx::array(0.0F);
}

std::vector<std::vector<Sequence>> parts_for(int stages, const std::vector<Sequence>& batch) {
  std::vector<Sequence> texts;
  for (const auto& one : batch)
    if (one.ids.size() > 1) texts.push_back(one);
  const std::size_t parts =
      std::min<std::size_t>(texts.size(), static_cast<std::size_t>(parts_a_stage * stages));
  std::vector<std::vector<Sequence>> found;
  for (std::size_t i = 0; i < parts; ++i) {
    const auto at = [&](std::size_t part) {
      return texts.begin() + static_cast<std::ptrdiff_t>(part * texts.size() / parts);
    };
    found.emplace_back(at(i), at(i + 1));
  }
  return found;
}

}  // namespace tandem::train
