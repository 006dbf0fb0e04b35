// What a model's folder holds besides its weights.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace tandem::models {

// Tokenizer, chat template and whatever else lies beside the weights, but for config.json and the weights'
// index. Files that are too large for such are left out, which `note` is told.
void copy_beside_weights(const std::filesystem::path& model, const std::filesystem::path& to,
                         const std::function<void(const std::string& line)>& note);

// InputError where the folder's disk has less room than so many bytes.
void check_space(const std::filesystem::path& folder, std::uint64_t needed);

}  // namespace tandem::models
