// The folder that `tandem train` writes: what lies in it besides weights, and which checkpoint is the last.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/train_flags.h"
#include "weights/file_lock.h"

namespace tandem::cli {

// How safetensors spells the dtype of the result: "BF16", "F16" or "F32".
std::string result_dtype(const TrainFlags& flags, const std::filesystem::path& model);

// The model's config.json as that of unquantised weights.
nlohmann::json unquantised_config(const std::filesystem::path& model);

std::filesystem::path weights_file(const TrainFlags& flags);
// OUT/checkpoint-000100.safetensors, after step 100.
std::filesystem::path checkpoint_file(const TrainFlags& flags, int step);
// The step of the last checkpoint; 0: there is none.
int last_checkpoint(const TrainFlags& flags);
// Whether there is an older one.
bool has_checkpoint_before(const TrainFlags& flags, int step);
void remove_checkpoints_before(const TrainFlags& flags, int step);

// Makes the folder, which is this run's alone while the lock lives. InputError where it cannot be made, is
// the model's own, or another run's now.
weights::FileLock lock_folder(const TrainFlags& flags, const std::filesystem::path& model);

// What belongs into the folder besides the weights, before the first of them. InputError where it holds
// another run's, or one that began otherwise than the one that is to be resumed.
void write_beside(const TrainFlags& flags, const std::filesystem::path& model);

}  // namespace tandem::cli
