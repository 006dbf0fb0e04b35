// Keys and values of one sequence, for the layers and key/value heads of one rank.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/key_values.h"

namespace tandem::models {

class KvCache {
 public:
  explicit KvCache(int layers, kernels::KeyValueFormat format = kernels::KeyValueFormat::plain)
      : layers_(layers, kernels::KeyValues{.format = format}) {}

  kernels::KeyValues& layer(int index) { return layers_[index]; }
  // Positions held.
  int length() const { return layers_.front().length; }
  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const auto& layer : layers_) sum += layer.bytes();
    return sum;
  }

 private:
  std::vector<kernels::KeyValues> layers_;
};

// Some rows of a step: the tokens that follow what the cache of one sequence holds, or, without a cache, a
// sequence that stands alone.
struct SequenceRows {
  int tokens = 0;
  KvCache* cache = nullptr;
  bool expanded = false;  // the form that they take in latent attention (attention.h: expanded_from)
};

}  // namespace tandem::models
