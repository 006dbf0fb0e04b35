#include "weights/hub_models.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "base/error.h"

namespace tandem::weights {
namespace {

namespace fs = std::filesystem;

// The name in "models--ORG--NAME".
std::optional<ModelName> name_of_folder(const std::string& folder) {
  const std::string prefix = "models--";
  const auto separator = folder.find("--", prefix.size());
  if (!folder.starts_with(prefix) || separator == std::string::npos) return std::nullopt;
  try {
    return parse_model_name(folder.substr(prefix.size(), separator - prefix.size()) + "/" +
                            folder.substr(separator + 2));
  } catch (const InputError&) {
    return std::nullopt;
  }
}

std::vector<fs::path> entries(const fs::path& folder) {
  std::vector<fs::path> paths;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    paths.push_back(entry->path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// The files that a snapshot's links lead to, or that lie in it themselves, as they do where links cannot be
// made.
std::set<fs::path> blobs_of(const fs::path& snapshot) {
  std::set<fs::path> blobs;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(snapshot, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code broken;
    if (!fs::is_regular_file(entry->path(), broken)) continue;
    const auto file = fs::canonical(entry->path(), broken);
    if (!broken) blobs.insert(file);
  }
  return blobs;
}

void count(CachedModel& model, const fs::path& file) {
  struct stat status {};
  if (::stat(file.c_str(), &status) != 0) return;
  model.bytes += static_cast<std::uint64_t>(status.st_size);
  model.modified_s = std::max<std::int64_t>(model.modified_s, status.st_mtime);
}

std::uint64_t bytes_of(const fs::path& file) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  return error ? 0 : size;
}

std::vector<CachedModel> models_of(const HubFolder& folder, const ModelName& name) {
  std::vector<CachedModel> models;
  const auto references = read_references(folder);
  std::error_code error;
  for (const auto& snapshot : entries(folder.snapshots())) {
    if (!fs::is_directory(snapshot, error)) continue;
    CachedModel model{name, snapshot.filename().string()};
    for (const auto& reference : references) {
      if (reference.commit == model.commit) model.revisions.push_back(reference.revision);
    }
    for (const auto& blob : blobs_of(snapshot)) count(model, blob);
    models.push_back(std::move(model));
  }
  if (!models.empty()) return models;
  CachedModel unfinished{name};
  for (const auto& blob : entries(folder.blobs())) count(unfinished, blob);
  return {unfinished};
}

void plan_all(const HubFolder& folder, const ModelName& name, Removal& removal) {
  removal.models = models_of(folder, name);
  removal.paths = {folder.refs(), folder.snapshots(), folder.blobs(), folder.path};
  for (const auto& blob : entries(folder.blobs())) removal.bytes += bytes_of(blob);
}

void plan_one(const HubFolder& folder, const std::vector<CachedModel>& models, const std::string& commit,
              Removal& removal) {
  std::set<fs::path> kept;
  for (const auto& model : models) {
    if (model.commit == commit) {
      removal.models.push_back(model);
    } else {
      kept.merge(blobs_of(folder.snapshots() / model.commit));
    }
  }
  for (const auto& revision : removal.models.front().revisions) {
    removal.paths.push_back(folder.refs() / revision);
  }
  const auto snapshot = folder.snapshots() / commit;
  removal.paths.push_back(snapshot);
  const auto blobs = fs::canonical(folder.path) / "blobs";
  for (const auto& blob : blobs_of(snapshot)) {
    if (kept.contains(blob) || blob.parent_path() != blobs) continue;  // nothing outside the cache
    removal.bytes += bytes_of(blob);
    removal.paths.push_back(blob);
  }
}

}  // namespace

std::vector<CachedModel> list_models(const fs::path& hub_cache) {
  std::vector<CachedModel> models;
  std::error_code error;
  for (const auto& path : entries(hub_cache)) {
    const auto name = name_of_folder(path.filename().string());
    if (!name || !fs::is_directory(path, error)) continue;
    for (auto& model : models_of({path}, *name)) models.push_back(std::move(model));
  }
  return models;
}

Removal plan_removal(const fs::path& hub_cache, const ModelName& name) {
  const HubFolder folder = hub_folder(hub_cache, name);
  std::error_code error;
  if (!fs::is_directory(folder.path, error)) {
    throw InputError(
        fmt::format("{} is not in the cache {}; tandem list tells what is", name.id(), hub_cache.string()));
  }
  Removal removal;
  removal.lock = FileLock::try_lock(pull_lock(folder));
  if (!removal.lock) throw InputError(fmt::format("{} is being pulled; stop that first", name.id()));
  if (name.revision.empty()) {
    plan_all(folder, name, removal);
    return removal;
  }
  const auto commit = find_commit(folder, name.revision);
  if (!commit) {
    throw InputError(fmt::format("the cache {} has no revision {} of {}; tandem list tells what it has",
                                 hub_cache.string(), name.revision, name.id()));
  }
  const auto models = models_of(folder, name);
  if (models.size() == 1) {
    plan_all(folder, name, removal);
  } else {
    plan_one(folder, models, *commit, removal);
  }
  return removal;
}

void remove(const Removal& removal) {
  for (const auto& path : removal.paths) {
    std::error_code error;
    fs::remove_all(path, error);
    if (error) {
      throw InputError(fmt::format("cannot remove {}: {}", path.string(), error.message()));
    }
  }
}

}  // namespace tandem::weights
