#include "cli/cached_models.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <time.h>

#include <algorithm>

#include "cli/terminal.h"

namespace tandem::cli {
namespace {

struct tm calendar(std::int64_t seconds, bool local) {
  const auto time = static_cast<time_t>(seconds);
  struct tm parts {};
  local ? ::localtime_r(&time, &parts) : ::gmtime_r(&time, &parts);
  return parts;
}

// What to write behind NAME@: the branches and tags, else the commit.
std::string revision_text(const weights::CachedModel& model) {
  if (model.commit.empty()) return "(not whole)";
  if (model.revisions.empty()) return model.commit;
  return fmt::format("{}", fmt::join(model.revisions, ", "));
}

}  // namespace

std::string models_table(const std::vector<weights::CachedModel>& models) {
  std::vector<std::string> sizes;
  std::size_t width = 0;
  for (const auto& model : models) {
    sizes.push_back(format_bytes(model.bytes));
    width = std::max(width, sizes.back().size());
  }
  std::vector<std::vector<std::string>> rows{
      {"name", "revision", fmt::format("{:>{}}", "size", width), "modified"}};
  for (std::size_t i = 0; i < models.size(); ++i) {
    rows.push_back({models[i].model.id(), revision_text(models[i]), fmt::format("{:>{}}", sizes[i], width),
                    fmt::format("{:%Y-%m-%d %H:%M}", calendar(models[i].modified_s, /*local=*/true))});
  }
  return format_table(rows);
}

nlohmann::json models_json(const std::vector<weights::CachedModel>& models) {
  auto list = nlohmann::json::array();
  for (const auto& model : models) {
    list.push_back(
        {{"name", model.model.id()},
         {"commit", model.commit},
         {"revisions", model.revisions},
         {"bytes", model.bytes},
         {"modified", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", calendar(model.modified_s, /*local=*/false))},
         {"whole", !model.commit.empty()}});
  }
  return list;
}

}  // namespace tandem::cli
