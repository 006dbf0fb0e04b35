#include "kernels/key_values.h"

#include <algorithm>

#include "kernels/panels.h"

namespace tandem::kernels {

KeyValuePanels::KeyValuePanels(int heads, int key_dim, int value_dim, bool values_in_keys)
    : heads_(heads), key_dim_(key_dim), value_dim_(value_dim), values_in_keys_(values_in_keys) {}

void KeyValuePanels::reserve(int end) {
  const auto blocks = static_cast<std::size_t>((end + block - 1) / block);
  while (blocks_.size() < blocks) blocks_.push_back(std::make_unique<float[]>(heads_ * head_floats()));
}

namespace {

// Row `row` of values in panels of 32 dims, [dims / 32][block][32].
void put_values(const float* from, int dims, int row, float* to) {
  for (int d = 0; d < dims; ++d)
    to[(d / panel_outputs * KeyValuePanels::block + row) * panel_outputs + d % panel_outputs] = from[d];
}

}  // namespace

void KeyValuePanels::put(int position, const float* k, const float* v) {
  const auto index = static_cast<std::size_t>(position / block);
  const int row = position % block;
  for (int head = 0; head < heads_; ++head) {
    float* keys = blocks_[index].get() + head * head_floats();
    if (values_in_keys_) {
      put_values(k + head * key_dim_, key_dim_, row, keys);
      continue;
    }
    float* key = keys + static_cast<std::ptrdiff_t>(row / panel_outputs) * key_dims() * panel_outputs +
                 row % panel_outputs;
    for (int d = 0; d < key_dim_; ++d) key[d * panel_outputs] = k[head * key_dim_ + d];
    put_values(v + head * value_dim_, value_dim_, row, keys + static_cast<std::size_t>(block) * key_dims());
  }
}

const float* KeyValuePanels::keys(int index, int head, int positions, std::vector<float>& scratch) const {
  const float* held = blocks_[index].get() + head * head_floats();
  if (!values_in_keys_) return held;
  const std::size_t size = static_cast<std::size_t>(block) * held_dims();
  if (scratch.size() < size) scratch.resize(size);
  const int panels = (positions + panel_outputs - 1) / panel_outputs;
  for (int panel = 0; panel < panels; ++panel) {
    float* to = scratch.data() + static_cast<std::ptrdiff_t>(panel) * key_dims() * panel_outputs;
    for (int first = 0; first < key_dim_; first += panel_outputs) {  // a square at a time
      const float* from =
          held + static_cast<std::ptrdiff_t>(first) * block + panel * panel_outputs * panel_outputs;
      const int dims = std::min(panel_outputs, key_dims() - first);
      for (int d = 0; d < dims; ++d) {
        for (int p = 0; p < panel_outputs; ++p)
          to[(first + d) * panel_outputs + p] = from[p * panel_outputs + d];
      }
    }
  }
  return scratch.data();
}

const float* KeyValuePanels::values(int index, int head) const {
  const float* held = blocks_[index].get() + head * head_floats();
  return values_in_keys_ ? held : held + static_cast<std::size_t>(block) * key_dims();
}

std::size_t KeyValuePanels::bytes() const { return blocks_.size() * heads_ * head_floats() * sizeof(float); }

std::size_t KeyValues::bytes() const {
  if (panels) return panels->bytes();
  return (keys ? keys->nbytes() : 0) + (values ? values->nbytes() : 0);
}

}  // namespace tandem::kernels
