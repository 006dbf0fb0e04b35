#include "kernels/key_values.h"

#include "kernels/panels.h"

namespace tandem::kernels {

KeyValuePanels::KeyValuePanels(int heads, int key_dim, int value_dim)
    : heads_(heads), key_dim_(key_dim), value_dim_(value_dim) {}

void KeyValuePanels::reserve(int end) {
  const auto blocks = static_cast<std::size_t>((end + block - 1) / block);
  while (blocks_.size() < blocks) blocks_.push_back(std::make_unique<float[]>(heads_ * head_floats()));
}

void KeyValuePanels::put(int position, const float* k, const float* v) {
  const auto index = static_cast<std::size_t>(position / block);
  const int row = position % block;
  for (int head = 0; head < heads_; ++head) {
    float* keys = blocks_[index].get() + head * head_floats();
    float* values = keys + static_cast<std::size_t>(block) * key_dims();
    float* key = keys + static_cast<std::ptrdiff_t>(row / panel_outputs) * key_dims() * panel_outputs +
                 row % panel_outputs;
    for (int d = 0; d < key_dim_; ++d) key[d * panel_outputs] = k[head * key_dim_ + d];
    for (int d = 0; d < value_dim_; ++d) {
      values[(d / panel_outputs * block + row) * panel_outputs + d % panel_outputs] =
          v[head * value_dim_ + d];
    }
  }
}

const float* KeyValuePanels::keys(int index, int head) const {
  return blocks_[index].get() + head * head_floats();
}

const float* KeyValuePanels::values(int index, int head) const {
  return keys(index, head) + static_cast<std::size_t>(block) * key_dims();
}

std::size_t KeyValuePanels::bytes() const { return blocks_.size() * heads_ * head_floats() * sizeof(float); }

std::size_t KeyValues::bytes() const {
  if (panels) return panels->bytes();
  return keys ? keys->nbytes() + values->nbytes() : 0;
}

}  // namespace tandem::kernels
