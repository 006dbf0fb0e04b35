// What to download: pure functions of the hub's answer. The hub's API: GET ENDPOINT/api/models/ORG/NAME/
// revision/REVISION?blobs=true lists a revision's files, GET ENDPOINT/ORG/NAME/resolve/COMMIT/PATH is one.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "weights/checksum.h"
#include "weights/hub_cache.h"

namespace tandem::weights {

struct HubFile {
  std::string path;                   // within the model
  std::optional<std::uint64_t> size;  // nothing where the list does not say
  std::optional<Checksum> checksum;
};

struct HubListing {
  std::string commit;
  std::vector<HubFile> files;
};

// DownloadError where the answer is no such list, or names a file outside the model's folder, or one twice.
HubListing listing_from_json(const nlohmann::json& answer);

// The files that one of `include` matches, as fnmatch(3) does: "*" stands for slashes too. Without patterns
// those that running needs: in the top folder, configurations, tokenizer, chat template and safetensors, but
// not the second copy of the weights that some models have as "consolidated…". InputError where nothing is
// left, or, without patterns, no weights.
std::vector<HubFile> select_files(const HubListing& listing, const std::vector<std::string>& include,
                                  const ModelName& model);

std::string listing_url(const std::string& endpoint, const ModelName& model);
std::string file_url(const std::string& endpoint, const ModelName& model, const std::string& commit,
                     const std::string& path);

// "https://host[:port][/path]" without a slash at the end. InputError where it is none.
std::string checked_endpoint(std::string endpoint);

}  // namespace tandem::weights
