#include "weights/hub_cache.h"

#include <fmt/format.h>

#include <fstream>
#include <regex>

#include "base/error.h"

namespace tandem::weights {

namespace fs = std::filesystem;

fs::path resolve_model(const std::string& model, const fs::path& hub_cache) {
  if (fs::is_directory(model)) return fs::absolute(model);
  if (fs::exists(model)) throw InputError(fmt::format("{} is a file; give the model's folder", model));
  static const std::regex hub_name(R"(([\w.-]+)/([\w.-]+)(?:@([\w./-]+))?)");
  std::smatch match;
  if (!std::regex_match(model, match, hub_name)) {
    throw InputError(fmt::format("no folder \"{}\", and it is no Hugging Face name like org/model", model));
  }
  const std::string revision = match[3].matched ? match[3].str() : "main";
  const fs::path repository = hub_cache / fmt::format("models--{}--{}", match[1].str(), match[2].str());
  std::string commit = revision;
  if (std::ifstream reference(repository / "refs" / revision); reference) std::getline(reference, commit);
  const fs::path snapshot = repository / "snapshots" / commit;
  if (!fs::is_directory(snapshot)) {
    throw InputError(
        fmt::format("no folder \"{}\", and the hub cache has no such model: {} is missing; download it "
                    "there, or give a folder",
                    model, snapshot.string()));
  }
  return snapshot;
}

}  // namespace tandem::weights
