// Keys and values that one rank holds of one layer of one sequence.
#pragma once

#include <mlx/array.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace tandem::kernels {

// What is held of a position. Where values are the first numbers of the keys (multi-head latent attention)
// they are held once.
struct KeyValueShape {
  int heads = 0;
  int key_dim = 0, value_dim = 0;  // of a head
  bool values_in_keys = false;

  bool operator==(const KeyValueShape&) const = default;
};

// How the numbers are held: as they come (float32 on a CPU, the activations' type on a GPU), or as 8-bit
// codes, of which 32 numbers of a head and position share a scale, so that a position's codes depend on it
// alone.
enum class KeyValueFormat : std::uint8_t { plain, int8 };

// On a CPU: panels (panels.h) in blocks of positions, so that growing copies nothing and both products of
// attention read them as they stand, or unpacked a block at a time. Dims are padded with zeros: of keys to an
// even number, of values to whole panels. Values that are in the keys are laid out as values.
//
// Codes have the layout of the floats that they stand for, and follow in a head's part of a block each other
// and their scales, in bfloat16:
//   keys    [block / 32][dims / 32][32 positions]
//   values  [dims / 32][block]
// A code c of scale s stands for c * s, which float32 holds exactly.
class KeyValuePanels {
 public:
  static constexpr int block = 256;  // positions
  static constexpr int group = 32;   // numbers that share a scale

  explicit KeyValuePanels(const KeyValueShape& shape, KeyValueFormat format = KeyValueFormat::plain)
      : shape_(shape), format_(format) {}

  // Adds blocks until there is room for the positions below `end`.
  void reserve(int end);
  // k [heads * key_dim] and v [heads * value_dim] of position `position`, for which there is room; v is not
  // read where values are in the keys. Threads may put different positions at once.
  void put(int position, const float* k, const float* v);

  struct Scratch {
    std::vector<float> keys, values;
  };
  struct Block {
    const float* keys;    // [block / 32][key_dims()][32 positions]
    const float* values;  // [value_dims() / 32][block][32 dims]
  };
  // The first `positions` of the positions [index * block, …), in `scratch` where they are not held so.
  Block read(int index, int head, int positions, Scratch& scratch) const;

  const KeyValueShape& shape() const { return shape_; }
  KeyValueFormat format() const { return format_; }
  int key_dims() const { return (shape_.key_dim + 1) / 2 * 2; }
  int value_dims() const { return (shape_.value_dim + 31) / 32 * 32; }
  std::size_t block_bytes() const { return shape_.heads * head_bytes(); }
  std::size_t bytes() const { return blocks_.size() * block_bytes(); }

 private:
  int held_dims() const { return (shape_.key_dim + 31) / 32 * 32; }  // of keys that are held as values
  int first_dims() const { return shape_.values_in_keys ? held_dims() : key_dims(); }
  int second_dims() const { return shape_.values_in_keys ? 0 : value_dims(); }
  // Bytes of `dims` numbers a position.
  std::size_t part_bytes(int dims) const;
  std::size_t head_bytes() const { return part_bytes(first_dims()) + part_bytes(second_dims()); }
  void put_as_keys(const float* k, int row, std::byte* part) const;
  void put_as_values(const float* v, int dims, int row, std::byte* part) const;
  const float* unpacked_keys(const std::byte* part, int positions, std::vector<float>& scratch) const;
  const float* unpacked_values(const std::byte* part, int dims, int positions,
                               std::vector<float>& scratch) const;

  KeyValueShape shape_;
  KeyValueFormat format_;
  std::vector<std::unique_ptr<std::byte[]>> blocks_;  // of a head the keys, then the values
};

// Rows on a GPU, [1, H, capacity, D]; 8-bit codes with the scales and biases of MLX's affine quantisation.
struct HeldRows {
  std::optional<mlx::core::array> rows, scales, biases;

  std::size_t bytes() const;
};

// Makes room for the positions below `end` in rows [1, H, capacity, D], with zeros, in steps of a block.
// `shape` is that of new rows, whose number is not read.
void grow(std::optional<mlx::core::array>& rows, int end, const mlx::core::Shape& shape,
          mlx::core::Dtype dtype, mlx::core::Stream s);

// Of either device; attention() fills it.
struct KeyValues {
  KeyValueFormat format = KeyValueFormat::plain;
  int length = 0;                          // positions
  std::shared_ptr<KeyValuePanels> panels;  // on a CPU
  HeldRows keys, values;                   // on a GPU

  std::size_t bytes() const;
};

// Bytes of `KeyValuePanels::block` positions in a GPU's arrays, of numbers of `item_bytes`.
std::size_t block_bytes_on_gpu(const KeyValueShape& shape, KeyValueFormat format, std::size_t item_bytes);

}  // namespace tandem::kernels
