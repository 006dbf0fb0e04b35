// The report of a training run: one HTML file that needs nothing else.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

namespace tandem::train {

// `facts`: what the run is, a name and a text each. `lines`: those of metrics.jsonl, in the order in which
// they were written; of several for a step the last counts, as a run that went on from a checkpoint leaves
// them.
std::string html_report(const std::string& title,
                        const std::vector<std::pair<std::string, std::string>>& facts,
                        const std::vector<nlohmann::json>& lines);

}  // namespace tandem::train
