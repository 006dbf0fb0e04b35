#include "cli/environment.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "base/error.h"

namespace tandem::cli {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::filesystem::path home() {
  if (const auto value = variable("HOME"); !value.empty()) return value;
  const auto* entry = ::getpwuid(::getuid());
  if (entry && entry->pw_dir && *entry->pw_dir) return entry->pw_dir;
  throw InputError("HOME is not set, and the system knows no home folder of this user: set HOME");
}

std::filesystem::path home_or(const char* name, const char* below_home) {
  if (const auto value = variable(name); !value.empty()) return value;
  return home() / below_home;
}

}  // namespace

std::filesystem::path hub_cache() {
  if (const auto value = variable("HF_HUB_CACHE"); !value.empty()) return value;
  return home_or("HF_HOME", ".cache/huggingface") / "hub";
}

std::string hub_endpoint() {
  const auto value = variable("HF_ENDPOINT");
  return value.empty() ? "https://huggingface.co" : value;
}

std::string hub_token() {
  constexpr const char* blank = " \t\r\n";
  auto token = variable("HF_TOKEN");
  token.erase(0, std::min(token.find_first_not_of(blank), token.size()));
  token.erase(token.find_last_not_of(blank) + 1);
  const bool visible = std::all_of(token.begin(), token.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (!visible) throw InputError("HF_TOKEN holds a character that no token has; set it again, or unset it");
  return token;
}

std::string certificate_file() { return variable("SSL_CERT_FILE"); }

std::filesystem::path cache_folder() { return home_or("XDG_CACHE_HOME", ".cache") / "tandem"; }

std::filesystem::path state_folder() { return home_or("XDG_STATE_HOME", ".local/state") / "tandem"; }

bool colour_wanted() { return variable("NO_COLOR").empty(); }

}  // namespace tandem::cli
