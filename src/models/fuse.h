// `tandem fuse`: a model's folder anew with an adapter added to its weights.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

namespace tandem::models {

struct FuseProgress {
  std::uint64_t total_bytes = 0;  // of the model's files
  std::uint64_t there_bytes = 0;
  std::size_t fused = 0, matrices = 0;  // that the adapter is for
};

struct FuseWatcher {
  std::function<void(const std::string& line)> note;
  std::function<void(const FuseProgress&)> progress;  // often
  std::function<bool()> stopped;
};

// The watcher wanted it.
class FuseStopped {};

// Each product's weight, an expert's too, becomes W + scale · (lora_a · lora_b)ᵀ (Hu et al. 2021,
// arXiv:2106.09685, section 4.1), its rows, of DoRA, scaled to the norms in m, in its own dtype; one that is
// quantised is quantised anew with the same bits and groups. All else stays byte for byte. `out` is new or
// empty, and has no config.json before it is complete. InputError names what is wrong.
FuseProgress fuse(const std::filesystem::path& model, const std::filesystem::path& adapter,
                  const std::filesystem::path& out, const FuseWatcher& watcher);

}  // namespace tandem::models
