#include "kernels/isa_avx512.h"

namespace tandem::kernels {

extern const PanelLoops panels_avx512_bf16 = panel_loops<Avx512>("avx512_bf16");

}  // namespace tandem::kernels
