// The model that the program carries.
#pragma once

#include <filesystem>

namespace tandem::cli {

// Its folder, unpacked into `cache` where it is not yet. InputError where the folder cannot be written.
std::filesystem::path unpack_demo_model(const std::filesystem::path& cache);

}  // namespace tandem::cli
