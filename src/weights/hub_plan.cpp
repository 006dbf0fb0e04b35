#include "weights/hub_plan.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <array>
#include <regex>
#include <set>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::weights {
namespace {

constexpr std::array needed{"*.json",     "*.safetensors", "*.jinja",    "*.model",
                            "tokenizer*", "vocab*",        "merges.txt", "*.tiktoken"};
constexpr const char* second_copy = "consolidated*";

bool matches(const std::string& pattern, const std::string& path) {
  return ::fnmatch(pattern.c_str(), path.c_str(), 0) == 0;
}

bool is_needed(const std::string& path) {
  return path.find('/') == std::string::npos && !matches(second_copy, path) &&
         std::any_of(needed.begin(), needed.end(),
                     [&](const char* pattern) { return matches(pattern, path); });
}

bool is_weights(const HubFile& file) { return file.path.ends_with(".safetensors"); }

// Percent-encoded but for RFC 3986's unreserved characters and those of `kept`.
std::string escaped(std::string_view text, std::string_view kept = "") {
  std::string result;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("-._~").find(c) != std::string_view::npos ||
                       kept.find(c) != std::string_view::npos;
    result += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return result;
}

std::string text_of(const nlohmann::json& object, const char* field) {
  const auto found = object.find(field);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

HubFile file_from_json(const nlohmann::json& entry) {
  HubFile file;
  if (entry.is_object()) file.path = text_of(entry, "rfilename");
  if (!is_plain_path(file.path)) {
    throw DownloadError(
        fmt::format("the hub lists a file {}, which is no path within the model; nothing is downloaded",
                    nlohmann::json(file.path).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace)));
  }
  if (const auto size = entry.find("size"); size != entry.end() && size->is_number_unsigned()) {
    file.size = size->get<std::uint64_t>();
    if (*file.size > limits::hub_file_bytes) {
      throw DownloadError(
          fmt::format("the hub lists {} with {} bytes, more than any file has", file.path, *file.size));
    }
  }
  if (const auto lfs = entry.find("lfs"); lfs != entry.end() && lfs->is_object()) {
    const auto sha256 = text_of(*lfs, "sha256");
    file.checksum = checksum_from_hex(sha256.empty() ? text_of(*lfs, "oid") : sha256);
  } else {
    file.checksum = checksum_from_hex(text_of(entry, "blobId"));
  }
  return file;
}

std::string quoted_list(const std::vector<std::string>& words) {
  std::string list;
  for (const auto& word : words) list += (list.empty() ? "\"" : ", \"") + word + "\"";
  return list;
}

}  // namespace

HubListing listing_from_json(const nlohmann::json& answer) {
  HubListing listing;
  if (answer.is_object()) listing.commit = text_of(answer, "sha");
  if (!is_commit(listing.commit) || !answer.contains("siblings") || !answer["siblings"].is_array()) {
    throw DownloadError(
        "the hub's answer is no list of a model's files (\"sha\", \"siblings\"); does HF_ENDPOINT name a "
        "hub?");
  }
  std::set<std::string> paths;
  for (const auto& entry : answer["siblings"]) {
    listing.files.push_back(file_from_json(entry));
    if (!paths.insert(listing.files.back().path).second) {
      throw DownloadError(fmt::format("the hub lists {} twice", listing.files.back().path));
    }
  }
  return listing;
}

std::vector<HubFile> select_files(const HubListing& listing, const std::vector<std::string>& include,
                                  const ModelName& model) {
  std::vector<HubFile> files;
  for (const auto& file : listing.files) {
    const bool wanted = include.empty()
                            ? is_needed(file.path)
                            : std::any_of(include.begin(), include.end(), [&](const std::string& pattern) {
                                return matches(pattern, file.path);
                              });
    if (wanted) files.push_back(file);
  }
  if (files.empty() && !include.empty()) {
    throw InputError(fmt::format("none of the {} files of {} matches --include {}", listing.files.size(),
                                 model.id(), quoted_list(include)));
  }
  if (include.empty() && std::none_of(files.begin(), files.end(), is_weights)) {
    throw InputError(fmt::format(
        "{} has no *.safetensors, which running needs; --include \"*\" downloads all it has", model.id()));
  }
  return files;
}

std::string listing_url(const std::string& endpoint, const ModelName& model) {
  return fmt::format("{}/api/models/{}/revision/{}?blobs=true", endpoint, model.id(),
                     escaped(model.revision_or_main()));
}

std::string file_url(const std::string& endpoint, const ModelName& model, const std::string& commit,
                     const std::string& path) {
  return fmt::format("{}/{}/resolve/{}/{}", endpoint, model.id(), commit, escaped(path, "/"));
}

std::string checked_endpoint(std::string endpoint) {
  while (endpoint.ends_with('/')) endpoint.pop_back();
  static const std::regex pattern(R"(https?://[\w.:\[\]-]{1,255}(/[\w./~-]{0,255})?)");
  if (!std::regex_match(endpoint, pattern)) {
    throw InputError(
        fmt::format("HF_ENDPOINT is \"{}\": give the hub's address, as https://hub.example", endpoint));
  }
  return endpoint;
}

}  // namespace tandem::weights
