// A verb's options from a YAML file.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace tandem::cli {

// What --optimizer takes, and what optimizer_config may have options of.
inline const std::vector<std::string> optimizer_names{"adamw", "adam", "sgd", "lion", "adafactor", "muon"};

// Adds `--config FILE` to the verb, before any other option. The file is a YAML mapping of options by their
// long names, with "_" or "-", and of the verb's MODEL; also as mlx_lm.lora has them: fine_tune_type,
// lora_parameters, lr_schedule, optimizer_config. What the command line gives as well is taken from there.
// InputError names the file, the line and the key.
void add_config_flag(CLI::App& verb);

// Such a file of what the verb was given; of what it takes where nothing was, as comments.
std::string config_text(const CLI::App& verb);

}  // namespace tandem::cli
