// Downloads a model from the Hugging Face hub into its local cache (weights/hub_cache.h). A blob has its name
// only when it is whole and its checksum right; the snapshot's links are made when all blobs are there, the
// file in refs/ after them. So whatever ends a pull leaves nothing that looks whole, and the next goes on.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "weights/hub_client.h"

namespace tandem::weights {

struct PullRequest {
  ModelName model;
  std::filesystem::path hub_cache;
  Hub hub;
  std::vector<std::string> include;  // as select_files takes them
  int retries = 0;                   // of each file, in a row
};

struct PullReport {
  std::string commit;
  std::filesystem::path folder;  // the snapshot
  PullProgress progress;
};

// InputError for what the user can mend: names, licences, a full disk. DownloadError for the rest,
// PullStopped where the watcher says so. Two pulls of one model take turns.
PullReport pull(const PullRequest& request, const PullWatcher& watcher);

}  // namespace tandem::weights
