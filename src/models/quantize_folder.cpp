#include "models/quantize_folder.h"

#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "weights/checksum.h"

namespace tandem::models {
namespace {

namespace fs = std::filesystem;

constexpr const char* state_name = ".tandem-quantize.json";
constexpr const char* lock_name = ".tandem-quantize.lock";

std::string sha256_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  weights::Hasher hasher(weights::ChecksumKind::sha256, 0);
  std::string piece(limits::read_chunk_bytes, '\0');
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())) || file.gcount() > 0) {
    hasher.update({piece.data(), static_cast<std::size_t>(file.gcount())});
  }
  if (file.bad()) throw InputError(fmt::format("cannot read {}", path.string()));
  return hasher.finish();
}

// What lies in a folder beside files of ours that no work stands behind; empty where nothing does.
std::string first_stranger(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(state_name) && name != lock_name) return name;
  }
  return {};
}

}  // namespace

QuantizeFolder::QuantizeFolder(fs::path folder, const std::string& plan, const std::string& made_of)
    : folder_(std::move(folder)), plan_(plan), made_of_(made_of) {
  std::error_code error;
  if (fs::exists(folder_, error) && !fs::is_directory(folder_, error))
    throw InputError(
        fmt::format("cannot make the folder {}: there is a file of this name", folder_.string()));
  fs::create_directories(folder_, error);
  if (error)
    throw InputError(fmt::format("cannot make the folder {}: {}", folder_.string(), error.message()));
  const auto state = find_json_file(file(state_name));
  if (!state) {
    if (fs::exists(file("config.json"), error)) {
      throw InputError(
          fmt::format("{} holds a whole model already, by this command or another; name a new or "
                      "an empty folder, or delete this one",
                      folder_.string()));
    }
    if (const auto name = first_stranger(folder_); !name.empty()) {
      throw InputError(fmt::format("{} holds something else already ({}); name a new or an empty folder",
                                   folder_.string(), name));
    }
  } else if (state->value("plan", "") != plan_) {
    throw InputError(
        fmt::format("{} holds the beginning of another result ({}), or that model has changed since; name "
                    "another folder, or delete this one",
                    folder_.string(), state->value("made_of", "unknown")));
  } else if (state->contains("shards") && (*state)["shards"].is_object()) {
    for (const auto& [name, sum] : (*state)["shards"].items()) {
      if (sum.is_string()) shards_[name] = sum;
    }
  }
  lock_ = weights::FileLock::try_lock(file(lock_name));
  if (!lock_) throw InputError(fmt::format("another tandem quantize is filling {}", folder_.string()));
  save();
}

void QuantizeFolder::save() const {
  const nlohmann::json state{{"plan", plan_}, {"made_of", made_of_}, {"shards", shards_}};
  write_file(file(state_name), state.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + '\n');
}

bool QuantizeFolder::has_shard(const std::string& name, std::uint64_t bytes) const {
  const auto recorded = shards_.find(name);
  std::error_code error;
  return recorded != shards_.end() && fs::file_size(file(name), error) == bytes && !error &&
         sha256_of(file(name)) == recorded->second;
}

void QuantizeFolder::record(const std::string& name, const fs::path& incomplete) {
  shards_[name] = sha256_of(incomplete);
  save();
}

void QuantizeFolder::finish() {
  fs::remove(file(state_name));
  fs::remove(file(lock_name));
}

}  // namespace tandem::models
