// The cache's models as the user sees them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "weights/hub_models.h"

namespace tandem::cli {

// name, revision, size, modified; what a pull left half done has the revision "(not whole)".
std::string models_table(const std::vector<weights::CachedModel>& models);
// A list of objects; "whole" is false where a pull did not come to its end.
nlohmann::json models_json(const std::vector<weights::CachedModel>& models);

}  // namespace tandem::cli
