// Which cores each rank on this machine keeps to: --pin.
#pragma once

#include <string>
#include <vector>

#include "parallel/plan.h"

namespace tandem::cli {

// One word a local rank of `plan`, in the plan's order: "2", or a range, "0-3" → its cores. No words: no
// cores. InputError names the word that is no core, or says how many are missing.
std::vector<std::vector<int>> parse_pin(const std::vector<std::string>& words, const parallel::Plan& plan);

}  // namespace tandem::cli
