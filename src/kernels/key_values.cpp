#include "kernels/key_values.h"

#include <mlx/ops.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/panels.h"
#include "kernels/products.h"

namespace tandem::kernels {
namespace {

constexpr int group = KeyValuePanels::group;
static_assert(group == panel_outputs);
constexpr int block_panels = KeyValuePanels::block / panel_outputs;
constexpr std::size_t scale_size = 2;

constexpr int groups_of(int dims) { return (dims + group - 1) / group; }

// The smallest bfloat16 that is no less than x, of finite x >= 0.
std::uint16_t bfloat16_above(float x) {
  return static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(x) + 0xffffU) >> 16);
}
float to_float(std::uint16_t bfloat16) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bfloat16) << 16);
}

struct Codes {
  std::int8_t at[group] = {};
  std::uint16_t scale = 0;
};

// Up to a group of numbers, the largest magnitude as ±127 or a little less. What is not finite makes them all
// NaN.
Codes to_codes(const float* x, int count) {
  constexpr float least = 1e-30F;  // less would overflow the inverse, and is nothing beside any weight
  constexpr std::uint16_t nan = 0x7fc0;
  Codes codes;
  float top = 0;
  for (int i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) {
      codes.scale = nan;
      return codes;
    }
    top = std::max(top, std::fabs(x[i]));
  }
  if (top < least) return codes;
  codes.scale = bfloat16_above(top / 127);
  const float inverse = 1 / to_float(codes.scale);
  for (int i = 0; i < count; ++i) {
    codes.at[i] = static_cast<std::int8_t>(std::clamp(std::nearbyint(x[i] * inverse), -127.0F, 127.0F));
  }
  return codes;
}

// Of numbers held as values, [dims / 32][block][32 dims], the 32 positions of panel `panel` as keys are held:
// [dims][32 positions].
void transpose_panel(const float* values, int panel, int dims, float* to) {
  for (int first = 0; first < dims; first += panel_outputs) {  // a square at a time
    const float* from = values + static_cast<std::ptrdiff_t>(first) * KeyValuePanels::block +
                        static_cast<std::ptrdiff_t>(panel) * panel_outputs * panel_outputs;
    const int count = std::min(panel_outputs, dims - first);
    for (int d = 0; d < count; ++d) {
      for (int p = 0; p < panel_outputs; ++p)
        to[(first + d) * panel_outputs + p] = from[p * panel_outputs + d];
    }
  }
}

float* fit(std::vector<float>& scratch, int dims) {
  const std::size_t size = static_cast<std::size_t>(KeyValuePanels::block) * dims;
  if (scratch.size() < size) scratch.resize(size);
  return scratch.data();
}

}  // namespace

std::size_t KeyValuePanels::part_bytes(int dims) const {
  const std::size_t numbers = static_cast<std::size_t>(block) * dims;
  if (format_ == KeyValueFormat::plain) return numbers * sizeof(float);
  return numbers + static_cast<std::size_t>(block) * groups_of(dims) * scale_size;
}

void KeyValuePanels::reserve(int end) {
  const auto blocks = static_cast<std::size_t>((end + block - 1) / block);
  while (blocks_.size() < blocks) blocks_.push_back(std::make_unique<std::byte[]>(block_bytes()));
}

// The scales of a part follow its numbers.
void KeyValuePanels::put_as_keys(const float* k, int row, std::byte* part) const {
  const int panel = row / panel_outputs, column = row % panel_outputs, dims = key_dims();
  const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(panel) * dims * panel_outputs + column;
  if (format_ == KeyValueFormat::plain) {
    float* to = reinterpret_cast<float*>(part) + first;
    for (int d = 0; d < shape_.key_dim; ++d) to[d * panel_outputs] = k[d];
    return;
  }
  auto* to = reinterpret_cast<std::int8_t*>(part) + first;
  auto* scales = reinterpret_cast<std::uint16_t*>(part + static_cast<std::size_t>(block) * dims);
  for (int g = 0; g < groups_of(dims); ++g) {
    const int count = std::min(group, shape_.key_dim - g * group);
    const Codes codes = to_codes(k + g * group, count);
    scales[(panel * groups_of(dims) + g) * panel_outputs + column] = codes.scale;
    for (int d = 0; d < count; ++d) to[(g * group + d) * panel_outputs] = codes.at[d];
  }
}

void KeyValuePanels::put_as_values(const float* v, int dims, int row, std::byte* part) const {
  for (int g = 0; g < groups_of(dims); ++g) {
    const int count = std::min(group, dims - g * group);
    const std::ptrdiff_t at = (static_cast<std::ptrdiff_t>(g) * block + row) * panel_outputs;
    if (format_ == KeyValueFormat::plain) {
      std::copy_n(v + g * group, count, reinterpret_cast<float*>(part) + at);
      continue;
    }
    const Codes codes = to_codes(v + g * group, count);
    std::copy_n(codes.at, group, reinterpret_cast<std::int8_t*>(part) + at);
    auto* scales =
        reinterpret_cast<std::uint16_t*>(part + static_cast<std::size_t>(block) * groups_of(dims) * group);
    scales[g * block + row] = codes.scale;
  }
}

void KeyValuePanels::put(int position, const float* k, const float* v) {
  const int row = position % block;
  for (int head = 0; head < shape_.heads; ++head) {
    std::byte* part = blocks_[position / block].get() + head * head_bytes();
    if (shape_.values_in_keys) {
      put_as_values(k + head * shape_.key_dim, shape_.key_dim, row, part);
    } else {
      put_as_keys(k + head * shape_.key_dim, row, part);
      put_as_values(v + head * shape_.value_dim, shape_.value_dim, row, part + part_bytes(key_dims()));
    }
  }
}

const float* KeyValuePanels::unpacked_keys(const std::byte* part, int positions,
                                           std::vector<float>& scratch) const {
  if (format_ == KeyValueFormat::plain) return reinterpret_cast<const float*>(part);
  const int dims = key_dims(), groups = groups_of(dims);
  float* to = fit(scratch, dims);
  const auto* codes = reinterpret_cast<const std::int8_t*>(part);
  const auto* scales = reinterpret_cast<const std::uint16_t*>(part + static_cast<std::size_t>(block) * dims);
  const auto& loops = current_loops().vectors;
  for (int panel = 0; panel * panel_outputs < positions; ++panel) {
    for (int g = 0; g < groups; ++g) {
      const std::ptrdiff_t at = (static_cast<std::ptrdiff_t>(panel) * dims + g * group) * panel_outputs;
      loops.unpack_columns(codes + at, scales + (panel * groups + g) * panel_outputs,
                           std::min(group, dims - g * group), to + at);
    }
  }
  return to;
}

const float* KeyValuePanels::unpacked_values(const std::byte* part, int dims, int positions,
                                             std::vector<float>& scratch) const {
  if (format_ == KeyValueFormat::plain) return reinterpret_cast<const float*>(part);
  float* to = fit(scratch, dims);
  const auto* codes = reinterpret_cast<const std::int8_t*>(part);
  const auto* scales = reinterpret_cast<const std::uint16_t*>(part + static_cast<std::size_t>(block) * dims);
  const int padded = (positions + panel_outputs - 1) / panel_outputs * panel_outputs;
  for (int g = 0; g < dims / group; ++g) {
    const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(g) * block * panel_outputs;
    current_loops().vectors.unpack_rows(codes + at, scales + g * block, padded, to + at);
  }
  return to;
}

KeyValuePanels::Block KeyValuePanels::read(int index, int head, int positions, Scratch& scratch) const {
  const std::byte* part = blocks_[index].get() + head * head_bytes();
  if (!shape_.values_in_keys) {
    return {unpacked_keys(part, positions, scratch.keys),
            unpacked_values(part + part_bytes(key_dims()), value_dims(), positions, scratch.values)};
  }
  const float* values = unpacked_values(part, held_dims(), positions, scratch.values);
  float* keys = fit(scratch.keys, held_dims());
  for (int panel = 0; panel * panel_outputs < positions; ++panel) {
    transpose_panel(values, panel, key_dims(),
                    keys + static_cast<std::ptrdiff_t>(panel) * key_dims() * panel_outputs);
  }
  return {keys, values};
}

std::size_t HeldRows::bytes() const {
  std::size_t sum = 0;
  for (const auto* part : {&rows, &scales, &biases}) sum += *part ? (*part)->nbytes() : 0;
  return sum;
}

void grow(std::optional<mlx::core::array>& rows, int end, const mlx::core::Shape& shape,
          mlx::core::Dtype dtype, mlx::core::Stream s) {
  const int capacity = rows ? rows->shape(2) : 0;
  if (end <= capacity) return;
  constexpr int block = KeyValuePanels::block;
  mlx::core::Shape missing = shape;
  missing[2] = (end + block - 1) / block * block - capacity;
  const mlx::core::array room = mlx::core::zeros(missing, dtype, s);
  rows = rows ? mlx::core::concatenate({*rows, room}, 2, s) : room;
}

std::size_t KeyValues::bytes() const { return panels ? panels->bytes() : keys.bytes() + values.bytes(); }

std::size_t block_bytes_on_gpu(const KeyValueShape& shape, KeyValueFormat format, std::size_t item_bytes) {
  const auto row_bytes = [&](std::size_t dims) {
    if (format == KeyValueFormat::plain) return dims * item_bytes;
    const std::size_t groups = (dims + group - 1) / group;
    return groups * (group + 2 * item_bytes);  // codes, a scale and a bias
  };
  const std::size_t values = shape.values_in_keys ? 0 : row_bytes(shape.value_dim);
  return static_cast<std::size_t>(KeyValuePanels::block) * shape.heads * (row_bytes(shape.key_dim) + values);
}

}  // namespace tandem::kernels
