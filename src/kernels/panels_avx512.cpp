#include "kernels/isa_avx512.h"

namespace tandem::kernels {

extern const PanelLoops panels_avx512 = panel_loops<Avx512>("avx512");

}  // namespace tandem::kernels
