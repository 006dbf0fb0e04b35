// The Hugging Face hub's local cache (huggingface_hub, "Understand caching"). A model's folder,
// models--ORG--NAME, holds blobs/HASH, the files' bytes under their checksums; snapshots/COMMIT/PATH, links
// to them; refs/REVISION, a file with the commit that a branch or tag stood for.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tandem::weights {

// ORG/NAME[@REVISION] in its parts. Safe as parts of a path (is_plain_path), and without "--", which
// separates the two in the cache's folders.
struct ModelName {
  std::string organisation;
  std::string name;
  std::string revision;  // empty: none was given

  std::string id() const { return organisation + "/" + name; }
  std::string revision_or_main() const { return revision.empty() ? "main" : revision; }
};

// InputError where `text` is no such name.
ModelName parse_model_name(const std::string& text);

// A path that stays within the folder it is put to: parts between single slashes, none of them "." or "..",
// no backslash and no control character.
bool is_plain_path(std::string_view path);

// A commit's full name, 40 hexadecimal digits.
bool is_commit(const std::string& text);

struct HubFolder {
  std::filesystem::path path;  // models--ORG--NAME

  std::filesystem::path blobs() const { return path / "blobs"; }
  std::filesystem::path snapshots() const { return path / "snapshots"; }
  std::filesystem::path refs() const { return path / "refs"; }
  // Lock files lie beside the models' folders, as huggingface_hub's do.
  std::filesystem::path locks() const { return path.parent_path() / ".locks" / path.filename(); }
};

HubFolder hub_folder(const std::filesystem::path& hub_cache, const ModelName& model);

// Held by whoever adds to a model's folder or removes from it.
std::filesystem::path pull_lock(const HubFolder& folder);

// A branch or tag and the commit that its file in refs/ names.
struct HubReference {
  std::string revision;
  std::string commit;
};
std::vector<HubReference> read_references(const HubFolder& folder);

// The commit in snapshots/ that a revision stands for: a branch or tag, a commit, or the first digits of one,
// seven or more, where they fit one alone. Nothing where there is no such snapshot.
std::optional<std::string> find_commit(const HubFolder& folder, const std::string& revision);

// The folder of `model`: an existing folder as it is, or a name ORG/NAME[@REVISION] (revision "main" by
// default) looked up in `hub_cache`. InputError says where it was looked for.
std::filesystem::path resolve_model(const std::string& model, const std::filesystem::path& hub_cache);

}  // namespace tandem::weights
