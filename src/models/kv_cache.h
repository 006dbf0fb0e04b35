// Keys and values of one sequence, for the layers and key/value heads of one rank.
#pragma once

#include <mlx/array.h>

#include <optional>
#include <utility>
#include <vector>

namespace tandem::models {

class KvCache {
 public:
  class Layer {
   public:
    // Appends k and v [Hkv, T, D] and gives all so far, [Hkv, length, D]. Memory grows in steps of `step`
    // positions.
    std::pair<mlx::core::array, mlx::core::array> append(const mlx::core::array& k,
                                                         const mlx::core::array& v);
    int length() const { return length_; }

   private:
    friend class KvCache;
    static constexpr int step = 256;

    std::optional<mlx::core::array> keys_;  // [Hkv, capacity, D]
    std::optional<mlx::core::array> values_;
    int length_ = 0;
  };

  explicit KvCache(int layers) : layers_(layers) {}

  Layer& layer(int index) { return layers_[index]; }
  // Positions held.
  int length() const { return layers_.front().length(); }
  std::size_t bytes() const;

 private:
  std::vector<Layer> layers_;
};

}  // namespace tandem::models
