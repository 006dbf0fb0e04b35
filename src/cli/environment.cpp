#include "cli/environment.h"

#include <cstdlib>
#include <string>

namespace tandem::cli {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::filesystem::path home_or(const char* name, const char* below_home) {
  if (const auto value = variable(name); !value.empty()) return value;
  return std::filesystem::path(variable("HOME")) / below_home;
}

}  // namespace

std::filesystem::path hub_cache() {
  if (const auto value = variable("HF_HUB_CACHE"); !value.empty()) return value;
  return home_or("HF_HOME", ".cache/huggingface") / "hub";
}

std::filesystem::path cache_folder() { return home_or("XDG_CACHE_HOME", ".cache") / "tandem"; }

std::filesystem::path state_folder() { return home_or("XDG_STATE_HOME", ".local/state") / "tandem"; }

bool colour_wanted() { return variable("NO_COLOR").empty(); }

}  // namespace tandem::cli
