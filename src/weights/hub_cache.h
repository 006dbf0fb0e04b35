// The Hugging Face hub's local cache (huggingface_hub, "Understand caching"):
// models--ORG--NAME/refs/REVISION holds a commit, models--ORG--NAME/snapshots/COMMIT its files.
#pragma once

#include <filesystem>
#include <string>

namespace tandem::weights {

// The folder of `model`: an existing folder as it is, or a name ORG/NAME[@REVISION] (revision "main" by
// default) looked up in `hub_cache`. InputError says where it was looked for.
std::filesystem::path resolve_model(const std::string& model, const std::filesystem::path& hub_cache);

}  // namespace tandem::weights
