#include "models/kv_cache.h"

#include <mlx/ops.h>

namespace tandem::models {

namespace mx = mlx::core;

std::pair<mx::array, mx::array> KvCache::Layer::append(const mx::array& k, const mx::array& v) {
  const int heads = k.shape(0), added = k.shape(1), dim = k.shape(2);
  const int capacity = keys_ ? keys_->shape(1) : 0;
  if (length_ + added > capacity) {
    const int grown = (length_ + added + step - 1) / step * step;
    const auto grow = [&](std::optional<mx::array>& held, const mx::array& like) {
      mx::array room = mx::zeros({heads, grown - capacity, dim}, like.dtype());
      held = held ? mx::concatenate({*held, room}, 1) : room;
    };
    grow(keys_, k);
    grow(values_, v);
  }
  const auto put = [&](std::optional<mx::array>& held, const mx::array& update) {
    // Moved in, so that MLX may write into the buffer in place.
    held = mx::slice_update(std::exchange(held, std::nullopt).value(), update, mx::Shape{0, length_, 0},
                            mx::Shape{heads, length_ + added, dim});
  };
  put(keys_, k);
  put(values_, v);
  length_ += added;
  return {mx::slice(*keys_, {0, 0, 0}, {heads, length_, dim}),
          mx::slice(*values_, {0, 0, 0}, {heads, length_, dim})};
}

std::size_t KvCache::bytes() const {
  std::size_t sum = 0;
  for (const auto& layer : layers_) {
    if (layer.keys_) sum += layer.keys_->nbytes() + layer.values_->nbytes();
  }
  return sum;
}

}  // namespace tandem::models
