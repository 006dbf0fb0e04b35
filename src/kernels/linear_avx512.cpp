#include "kernels/linear_tile.h"

namespace tandem::kernels {

void linear_avx512(const LinearArgs& args) { linear_any(args); }

}  // namespace tandem::kernels
