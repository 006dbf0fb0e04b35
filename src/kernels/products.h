// Products of prepared rows and packed or dense matrices, on the threads of threads.h: what linear() and
// gather_linear() run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/matrix.h"
#include "kernels/panels.h"

namespace tandem::kernels {

enum class Activations {
  automatic,  // int8 by group for quantised matrices, bfloat16 for bfloat16 ones where the processor
              // multiplies that
  float32,    // as exact as float32 sums are; slower
};
// What x becomes in the products of CPU streams from now on.
void use_activations(Activations activations);

// The loops that CPU streams use from now on (find_loops); std::invalid_argument where this processor lacks
// them.
void use_loops(const char* name);
const PanelLoops& current_loops();

// A matrix as a product takes it.
struct Operand {
  PanelShape shape;  // as it is multiplied
  const PackedMatrix* packed =
      nullptr;  // or else `dense`, row-major, which is packed panel by panel on the way
  const void* dense = nullptr;
  bool unpacks = false;  // a quantised matrix that is multiplied as float32
  // The matrix is multiplied from its other side: shape.out is its inputs, shape.in its outputs; as bfloat16
  // where that is what it is and the processor multiplies that, else as float32.
  bool turned = false;
  Format stored = Format::f32;  // of a turned one, where it is dense
};
Operand packed_operand(const PackedMatrix& matrix);
Operand dense_operand(Format format, std::int64_t out, std::int64_t in, const void* rows);
Operand turned(const Operand& operand);

// Rows x [rows, in], prepared once for each kind of operand; turned, x is [in, rows]. One at a time in a
// thread: the memory is the thread's, kept between calls, as fresh memory would be paged in anew for every
// product.
class PreparedRows {
 public:
  PreparedRows(const float* x, std::int64_t rows, bool turned = false)
      : x_(x), rows_(rows), turned_(turned) {}
  const std::byte* as(const PanelShape& shape);
  std::int64_t rows() const { return rows_; }

 private:
  struct Kind {
    Activation activation;
    int group;
    const std::byte* bytes;
  };
  const float* x_;
  std::int64_t rows_;
  bool turned_;
  std::vector<Kind> kinds_;
};

// y [rows, out] = x · operandᵀ, or is added to y.
void multiply(const Operand& operand, PreparedRows& x, float* y, bool adds = false);
// Of the panels [first, end), in the caller's thread; `prepared` are `rows` rows as activation_of() the
// operand asks.
void multiply_panels(const Operand& operand, const std::byte* prepared, std::int64_t rows, float* y,
                     std::int64_t first, std::int64_t end, bool adds = false);
// Of one panel: row r's outputs, 32 or what is left, at y[r * stride].
void multiply_panel(const Operand& operand, const std::byte* prepared, std::int64_t rows, float* y,
                    std::int64_t stride, std::int64_t index);

// y [m, n] = aᵀ · b of a [rows, m] and b [rows, n]: the gradient by a matrix.
void multiply_outer(const float* a, std::int64_t m, const float* b, std::int64_t n, std::int64_t rows,
                    float* y);

// x [rows][stride], of which the first `columns` columns become rows, as Activation::f32 in tiles (panels.h).
void prepare_columns(const float* x, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                     float* prepared);

// Bytes of packed panels that products have read in this process.
std::uint64_t panel_bytes_read();

}  // namespace tandem::kernels
