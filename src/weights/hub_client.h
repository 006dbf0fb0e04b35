// The hub's API: what files a model has, and their checksums.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "weights/http.h"
#include "weights/hub_plan.h"
#include "weights/hub_retry.h"

namespace tandem::weights {

// What a download tells, and asks of, whoever waits for it.
struct PullProgress {
  std::uint64_t total_bytes = 0;
  std::uint64_t present_bytes = 0;  // of these, on this machine
  std::uint64_t fetched_bytes = 0;  // over the network by this pull; those of a spoilt try count too
  int files = 0;
  int present_files = 0;
};

struct PullWatcher {
  std::function<void(const std::string&)> note;  // a line for the user
  std::function<void(const std::string& commit, const std::vector<HubFile>& files, const PullProgress&)>
      planned;
  std::function<void(const PullProgress&)> progress;  // often
  std::function<void(const HubFile&)> finished;
  std::function<bool()> stopped;  // the user wants it to end
};

// The user wanted it to end (PullWatcher::stopped).
struct PullStopped {};

// The list of the model's files at its revision. Retries as `decide` says. Throws as throw_failure and
// listing_from_json do, and PullStopped.
HubListing fetch_listing(HttpClient& client, const Hub& hub, const ModelName& model, int retries,
                         const PullWatcher& watcher);

// Asks for the sizes and checksums that the list did not tell (a hub's mirror may not). DownloadError where a
// file has none.
void fetch_missing_checksums(HttpClient& client, const Hub& hub, const ModelName& model,
                             const std::string& commit, std::vector<HubFile>& files, int retries,
                             const PullWatcher& watcher);

}  // namespace tandem::weights
