// `tandem quantize`: a model's folder anew with 4 or 8 bit a weight, piece by piece, in the layout of
// quantized_layout.h and with the numbers of mlx::core::quantize.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "models/quantized_layout.h"

namespace tandem::models {

struct QuantizeProgress {
  std::uint64_t total_bytes = 0;  // of the result's tensors
  std::uint64_t there_bytes = 0;
  std::uint64_t written_bytes = 0;  // of these, now and not before
  std::size_t shards = 0, there_shards = 0;
};

struct QuantizeWatcher {
  std::function<void(const std::string& line)> note;
  std::function<void(const QuantizeProgress&)> progress;  // often
  std::function<bool()> stopped;
};

// The watcher wanted it.
class QuantizeStopped {};

struct QuantizeReport {
  QuantizeProgress progress;
  std::uint64_t weights = 0;              // numbers in the model
  std::uint64_t largest_piece_bytes = 0;  // the most of the model that was in memory at once, as stored
  std::vector<std::string> indivisible;   // matrices left as they were, layers' numbers as "*"
  std::vector<std::string> unused;        // tensors of the model that it does not compute with
};

// Fills the folder `out`, which is new or empty, or was left by the same call that was interrupted: shards
// that are whole are kept. It has no config.json before it is complete. InputError names what is wrong; a
// disk that is full leaves what is there for the next call, as QuantizeStopped does.
QuantizeReport quantize(const std::filesystem::path& model, const std::filesystem::path& out,
                        const QuantizeOptions& options, const QuantizeWatcher& watcher);

}  // namespace tandem::models
