#include "kernels/cpu_primitive.h"

#include <mlx/ops.h>

#include <cstring>

namespace tandem::kernels {

namespace mx = mlx::core;

namespace {

// Whether x is, or will be when it is computed, row-major.
bool is_row_major(const mx::array& x) {
  if (x.status() == mx::array::Status::available) return x.flags().row_contiguous;
  return x.has_primitive() && (dynamic_cast<const CpuPrimitive*>(&x.primitive()) != nullptr ||
                               std::strcmp(x.primitive().name(), "AllReduce") == 0);
}

}  // namespace

mx::array as_float_rows(const mx::array& x, mx::Stream s) {
  const mx::array floats = mx::astype(x, mx::float32, s);
  return is_row_major(floats) ? floats : mx::contiguous(floats, false, s);
}

}  // namespace tandem::kernels
