// What is trained of a model, on one rank.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "models/decoder.h"
#include "weights/source.h"

namespace tandem::train {

struct Parameter {
  weights::Slice slice;    // its name in the file that it is saved to, and where this rank's part lies in it
  mlx::core::array value;  // this rank's part, float32
  // Every rank of the stage holds the whole and computes a part of the gradient: the gradient is their sum.
  bool partial = false;
  // The first and the last of several stages hold it both: the gradient is their sum.
  bool tied = false;
  // An embedding alone: only the rows of a step's tokens have a gradient.
  bool looked_up = false;
  // V3's bias of the choice of experts: its gradient is how many tokens chose each (kernels/routing.h).
  bool balances = false;
  // The ranks with other sequences hold the other parts: the gradient is summed and cut as it comes.
  bool scattered = false;
};

// Layers, norm and output of a model that are made when they are computed; recomputed for the gradient, they
// are held no longer.
struct MadeLayers {
  // What gradients reach of each layer, and behind the layers of norm and output.
  std::vector<std::vector<mlx::core::array>> weights;
  // Of weights[layer], once `input`, what the layer computes with, is there.
  std::function<models::DecoderLayer(int layer, const std::vector<mlx::core::array>& weights,
                                     const mlx::core::array& input)>
      layer;
  std::function<void(models::Decoder& model, const mlx::core::array& input)> add_output;
};

struct TrainedModel {
  TrainedModel(models::Decoder decoder) : decoder(std::move(decoder)) {}

  models::Decoder decoder;
  std::optional<MadeLayers> made;  // then the decoder has its embedding alone
};

class Trainable {
 public:
  virtual ~Trainable() = default;

  // The model with `values` in the places of parameters(), in their order.
  virtual TrainedModel model(const std::vector<mlx::core::array>& values) = 0;

  virtual int hidden() const = 0;  // numbers of a token between layers

  std::vector<Parameter>& parameters() { return parameters_; }
  // Tensors that are saved with the parameters and do not change.
  const std::vector<Parameter>& fixed() const { return fixed_; }
  std::vector<mlx::core::array> values() const {
    std::vector<mlx::core::array> all;
    for (const auto& parameter : parameters_) all.push_back(parameter.value);
    return all;
  }
  std::vector<weights::Slice> slices() const {
    std::vector<weights::Slice> all;
    for (const auto& parameter : parameters_) all.push_back(parameter.slice);
    return all;
  }

 protected:
  std::vector<Parameter> parameters_, fixed_;
};

}  // namespace tandem::train
