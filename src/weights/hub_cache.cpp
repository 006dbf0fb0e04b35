#include "weights/hub_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <regex>

#include "base/error.h"
#include "base/limits.h"

namespace tandem::weights {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t shortest_commit = 7;

bool is_hexadecimal(const std::string& text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// What a file in refs/ may hold: it becomes a part of a path.
bool is_snapshot_name(const std::string& text) {
  static const std::regex allowed(R"([\w.-]{1,100})");
  return std::regex_match(text, allowed) && text != "." && text != "..";
}

std::string first_line(const fs::path& file) {
  std::ifstream stream(file);
  std::string line;
  std::getline(stream, line);
  return line;
}

}  // namespace

bool is_plain_path(std::string_view path) {
  if (path.empty() || path.size() > limits::hub_path_bytes) return false;
  const bool printable = std::all_of(path.begin(), path.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f && c != '\\';
  });
  for (std::size_t begin = 0; begin <= path.size();) {
    const auto end = std::min(path.find('/', begin), path.size());
    const auto part = path.substr(begin, end - begin);
    if (part.empty() || part == "." || part == ".." || part.size() > limits::hub_path_part_bytes)
      return false;
    begin = end + 1;
  }
  return printable;
}

ModelName parse_model_name(const std::string& text) {
  static const std::regex pattern(R"((\w[\w.-]{0,95})/(\w[\w.-]{0,95})(?:@([\w./-]{1,200}))?)");
  std::smatch match;
  const auto is_part = [&](int i) {
    return match[i].str().find("--") == std::string::npos && match[i].str().find("..") == std::string::npos;
  };
  if (!std::regex_match(text, match, pattern) || !is_part(1) || !is_part(2) ||
      (match[3].matched && !is_plain_path(match[3].str()))) {
    throw InputError(fmt::format("\"{}\" is no Hugging Face name: give ORG/NAME or ORG/NAME@REVISION", text));
  }
  return {match[1].str(), match[2].str(), match[3].str()};
}

bool is_commit(const std::string& text) { return text.size() == 40 && is_hexadecimal(text); }

HubFolder hub_folder(const fs::path& hub_cache, const ModelName& model) {
  return {hub_cache / fmt::format("models--{}--{}", model.organisation, model.name)};
}

fs::path pull_lock(const HubFolder& folder) { return folder.locks() / "tandem.lock"; }

std::vector<HubReference> read_references(const HubFolder& folder) {
  std::vector<HubReference> references;
  std::error_code error;
  for (fs::recursive_directory_iterator file(folder.refs(), error), end; !error && file != end;
       file.increment(error)) {
    if (!file->is_regular_file(error)) continue;
    references.push_back(
        {file->path().lexically_relative(folder.refs()).generic_string(), first_line(file->path())});
  }
  std::sort(references.begin(), references.end(),
            [](const auto& a, const auto& b) { return a.revision < b.revision; });
  return references;
}

std::optional<std::string> find_commit(const HubFolder& folder, const std::string& revision) {
  std::error_code error;
  std::string commit = revision;
  if (const auto file = folder.refs() / revision; fs::is_regular_file(file, error)) commit = first_line(file);
  if (!is_snapshot_name(commit)) return std::nullopt;
  if (fs::is_directory(folder.snapshots() / commit, error)) return commit;
  if (revision.size() < shortest_commit || !is_hexadecimal(revision)) return std::nullopt;
  std::optional<std::string> found;
  for (const auto& entry : fs::directory_iterator(folder.snapshots(), error)) {
    const auto name = entry.path().filename().string();
    if (!name.starts_with(revision)) continue;
    if (found) return std::nullopt;
    found = name;
  }
  return found;
}

fs::path resolve_model(const std::string& model, const fs::path& hub_cache) {
  if (fs::is_directory(model)) return fs::absolute(model);
  if (fs::exists(model)) throw InputError(fmt::format("{} is a file; give the model's folder", model));
  ModelName name;
  try {
    name = parse_model_name(model);
  } catch (const InputError&) {
    throw InputError(fmt::format("no folder \"{}\", and it is no Hugging Face name like org/model", model));
  }
  const HubFolder folder = hub_folder(hub_cache, name);
  if (const auto commit = find_commit(folder, name.revision_or_main())) return folder.snapshots() / *commit;
  throw InputError(
      fmt::format("no folder \"{}\", and no such model in the hub cache (looked for {} of {}); download it: "
                  "tandem pull {}",
                  model, name.revision_or_main(), folder.path.string(), model));
}

}  // namespace tandem::weights
