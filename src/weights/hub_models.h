// What the hub's local cache holds (weights/hub_cache.h), and how to remove it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "weights/file_lock.h"
#include "weights/hub_cache.h"

namespace tandem::weights {

// A snapshot in the cache, or what a pull left that did not come to its end.
struct CachedModel {
  ModelName model;                     // without revision
  std::string commit;                  // empty where no snapshot is whole
  std::vector<std::string> revisions;  // branches and tags that stand for it
  std::uint64_t bytes = 0;             // of its blobs; those it shares with other snapshots too
  std::int64_t modified_s = 0;         // of the newest blob, since 1970
};

// By name, then commit. Nothing where there is no cache.
std::vector<CachedModel> list_models(const std::filesystem::path& hub_cache);

struct Removal {
  std::vector<CachedModel> models;
  // In the order in which they go, so that what is left at any time looks like no model: references, then
  // snapshots, then blobs.
  std::vector<std::filesystem::path> paths;
  std::uint64_t bytes = 0;       // freed
  std::optional<FileLock> lock;  // no pull comes in between
};

// All that there is of ORG/NAME, or with a revision its snapshot, the references to it and the blobs that no
// other snapshot uses. InputError where there is none, or while it is pulled.
Removal plan_removal(const std::filesystem::path& hub_cache, const ModelName& model);

// InputError where something cannot be removed.
void remove(const Removal& removal);

}  // namespace tandem::weights
