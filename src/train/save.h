// What training leaves behind.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "train/trainer.h"

namespace tandem::train {

// Writes the whole parameters as a safetensors file, atomically, in `dtype` ("F32", "BF16" or "F16"). Every
// rank calls it, rank 0 with a file. InputError where it cannot be written.
void save_parameters(Trainer& trainer, const std::optional<std::filesystem::path>& file,
                     const std::string& dtype);

// Takes the parameters of such a file of any dtype, which has no other tensors. Every rank calls it, rank 0
// with the file. InputError where it does not fit.
void load_parameters(Trainer& trainer, const std::optional<std::filesystem::path>& file);

// The same of all that the next step depends on, in float32, for a group of any number of ranks to go on
// from: NAME of each parameter and NAME.optimizer0 … of what the optimizer remembers of it.
void save_state(Trainer& trainer, const std::optional<std::filesystem::path>& file);
// Every rank calls it, rank 0 with a file that save_state() wrote. InputError where that does not fit.
void restore_state(Trainer& trainer, const std::optional<std::filesystem::path>& file);

}  // namespace tandem::train
