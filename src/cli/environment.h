// The environment variables Tandem reads; they are read nowhere else.
#pragma once

#include <filesystem>

namespace tandem::cli {

// HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub.
std::filesystem::path hub_cache();
// XDG_CACHE_HOME/tandem, else ~/.cache/tandem.
std::filesystem::path cache_folder();
// XDG_STATE_HOME/tandem, else ~/.local/state/tandem.
std::filesystem::path state_folder();
// NO_COLOR is unset or empty (no-color.org).
bool colour_wanted();

}  // namespace tandem::cli
