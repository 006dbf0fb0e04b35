#include "kernels/isa_neon.h"

namespace tandem::kernels {

extern const PanelLoops panels_neon = panel_loops<Neon>("neon");

}  // namespace tandem::kernels
