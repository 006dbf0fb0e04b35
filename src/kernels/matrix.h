// A weight matrix as linear() takes it.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <memory>
#include <optional>
#include <vector>

#include "kernels/panels.h"

namespace tandem::kernels {

// A matrix in panels (panels.h), in memory of its own with large pages where the system has them.
class PackedMatrix {
 public:
  explicit PackedMatrix(const PanelShape& shape);
  ~PackedMatrix();
  PackedMatrix(const PackedMatrix&) = delete;
  PackedMatrix& operator=(const PackedMatrix&) = delete;

  const PanelShape& shape() const { return shape_; }
  const std::byte* panel(std::int64_t index) const { return bytes_ + index * panel_bytes(shape_); }
  std::byte* panel(std::int64_t index) { return bytes_ + index * panel_bytes(shape_); }
  std::size_t bytes() const { return size_; }

 private:
  PanelShape shape_;
  std::byte* bytes_ = nullptr;
  std::size_t size_ = 0;
};

struct Affine {
  mlx::core::array scales;  // [out, in / group] float32, float16 or bfloat16
  mlx::core::array biases;
  int group;
  int bits;
};

// [out, in]: dense in float32, float16 or bfloat16, or MLX's affine quantisation, or packed for a CPU.
struct Matrix {
  std::optional<mlx::core::array> weight;  // [out, in], or [out, in * bits / 32] uint32; none once packed
  std::optional<Affine> affine;
  std::shared_ptr<const PackedMatrix> packed;
  // Where join() made it a part of a larger one: that, whose rows from `first_row` on these are.
  std::shared_ptr<const Matrix> whole = nullptr;
  int first_row = 0;

  int out() const;
  int in() const;
  std::size_t bytes() const;
};

// float32, float16 or bfloat16; std::invalid_argument for others.
Format dense_format(mlx::core::Dtype dtype);

// Whether MLX's default device is the CPU: then matrices are packed, and memory is short.
bool on_cpu();

// The same matrix in panels. Reads the arrays now, and only them: what the caller then frees is freed.
Matrix pack(const Matrix& matrix);

// For a GPU: matrices that are multiplied with the same x become parts of one, so that linear() of them all
// is a single product. They stay as they are where they differ in kind. `matrices` then share the memory of
// the one.
void join(const std::vector<Matrix*>& matrices);

// Row-major [out, in] memory of a dense `format` into panel `index`.
void pack_panel(const void* weight, const PanelShape& shape, std::int64_t index, std::byte* panel);

// Rows `ids` [T] int32 of the matrix, as an embedding reads them → [T, in] float32 on a CPU stream; on a GPU
// stream in the dtype of weight or scales. Every id must be in [0, out): they are not checked.
mlx::core::array rows(const Matrix& matrix, const mlx::core::array& ids, mlx::core::StreamOrDevice s = {});

// Of row-major [rows, width] memory of a dense `format` the columns from 32 * index on, as `panels`
// panels of Format::f32, one behind the other, what is missing 0: what multiplies from the other side.
void pack_columns(const void* weight, Format format, std::int64_t rows, std::int64_t width,
                  std::int64_t index, std::int64_t panels, float* to);
// The same of bfloat16, as one panel of Format::bf16.
void pack_column_pairs(const std::uint16_t* weight, std::int64_t rows, std::int64_t width, std::int64_t index,
                       std::uint16_t* panel);
// Of a matrix packed as bfloat16 the inputs from 32 * index on, likewise.
void turn_panel_pairs(const PackedMatrix& matrix, std::int64_t index, std::uint16_t* panel);

// The sum of the squares of each row, quantised ones as the numbers they stand for: [out] float32, evaluated.
mlx::core::array row_squares(const Matrix& matrix);

// One panel as a panel of Format::f32, [in][32 outputs].
void unpack_panel(const PackedMatrix& matrix, std::int64_t index, float* to);

// Inputs [first_in, first_in + count) of the outputs [0, out) of a packed matrix, at most 32 of them, as
// floats [out, count]; a missing input is 0.
void unpack_columns(const PackedMatrix& matrix, std::int64_t first_in, std::int64_t count, float* to);

}  // namespace tandem::kernels
