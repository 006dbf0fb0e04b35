// The environment variables that name folders, the hub and its token. ~ is HOME, else the user's entry in the
// system's list; InputError where neither is there.
#pragma once

#include <filesystem>
#include <string>

namespace tandem::cli {

// HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub.
std::filesystem::path hub_cache();
// HF_ENDPOINT, else the hub itself.
std::string hub_endpoint();
// HF_TOKEN without white space around it; empty where there is none. InputError where it cannot be one.
std::string hub_token();
// SSL_CERT_FILE; empty where the system's certificates are to be trusted.
std::string certificate_file();
// XDG_CACHE_HOME/tandem, else ~/.cache/tandem.
std::filesystem::path cache_folder();
// XDG_STATE_HOME/tandem, else ~/.local/state/tandem.
std::filesystem::path state_folder();
// NO_COLOR is unset or empty (no-color.org).
bool colour_wanted();

}  // namespace tandem::cli
