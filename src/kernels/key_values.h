// Keys and values that one rank holds of one layer of one sequence.
#pragma once

#include <mlx/array.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace tandem::kernels {

// On a CPU: float32 panels (panels.h) in blocks of positions, so that growing copies nothing and both
// products of attention read them as they stand. Dims are padded with zeros: of keys to an even number, of
// values to whole panels. Where values are the first numbers of the keys (multi-head latent attention) they
// are held once, laid out as values.
class KeyValuePanels {
 public:
  static constexpr int block = 256;  // positions

  KeyValuePanels(int heads, int key_dim, int value_dim, bool values_in_keys = false);

  // Adds blocks until there is room for the positions below `end`.
  void reserve(int end);
  // k [heads * key_dim] and v [heads * value_dim] of position `position`, for which there is room; v is not
  // read where values are in the keys. Threads may put different positions at once.
  void put(int position, const float* k, const float* v);

  // Of the positions [index * block, …): [block / 32][key_dims()][32 positions]. Where they are held as
  // values, the first `positions` of them are laid out in `scratch`.
  const float* keys(int index, int head, int positions, std::vector<float>& scratch) const;
  // [value_dims() / 32][block][32 dims].
  const float* values(int index, int head) const;

  int heads() const { return heads_; }
  int key_dim() const { return key_dim_; }
  int value_dim() const { return value_dim_; }
  bool values_in_keys() const { return values_in_keys_; }
  int key_dims() const { return (key_dim_ + 1) / 2 * 2; }
  int value_dims() const { return (value_dim_ + 31) / 32 * 32; }
  std::size_t bytes() const;

 private:
  int held_dims() const { return (key_dim_ + 31) / 32 * 32; }  // of keys that are held as values
  std::size_t head_floats() const {
    return static_cast<std::size_t>(block) * (values_in_keys_ ? held_dims() : key_dims() + value_dims());
  }

  int heads_, key_dim_, value_dim_;
  bool values_in_keys_;
  std::vector<std::unique_ptr<float[]>> blocks_;  // of a head the keys, then the values
};

// Of either device; attention() fills it.
struct KeyValues {
  int length = 0;                                // positions
  std::shared_ptr<KeyValuePanels> panels;        // on a CPU
  std::optional<mlx::core::array> keys, values;  // on a GPU: [1, Hkv, capacity, D]

  std::size_t bytes() const;
};

}  // namespace tandem::kernels
