// The folder that `tandem quantize` fills. While it is under way, .tandem-quantize.json says what it is to
// become and which shards are there with which checksum; config.json, without which no program takes a folder
// for a model, comes last.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "weights/file_lock.h"

namespace tandem::models {

class QuantizeFolder {
 public:
  // Makes the folder, or goes on with one whose beginning has the same `plan`, a checksum of all that decides
  // about the result. `made_of` names it for people. InputError where the folder holds something else, or
  // another process is at it.
  QuantizeFolder(std::filesystem::path folder, const std::string& plan, const std::string& made_of);

  std::filesystem::path file(const std::string& name) const { return folder_ / name; }

  // A shard that was recorded, of `bytes` and with the checksum it had then. Reads it.
  bool has_shard(const std::string& name, std::uint64_t bytes) const;
  // Takes the checksum of INCOMPLETE, which is about to be renamed to `name`.
  void record(const std::string& name, const std::filesystem::path& incomplete);
  // The folder is a model now, and no longer a piece of work.
  void finish();

 private:
  void save() const;

  std::filesystem::path folder_;
  std::optional<weights::FileLock> lock_;
  std::string plan_, made_of_;
  std::map<std::string, std::string> shards_;  // name → SHA-256
};

}  // namespace tandem::models
