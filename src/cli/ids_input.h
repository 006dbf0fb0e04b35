// Token ids from the command line or a file.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tandem::cli {

// "5,6,7", or with white space, or a JSON list: "[5, 6, 7]". InputError names `source` and the word that is
// no id.
std::vector<int> parse_ids(std::string_view text, const std::string& source);
std::vector<int> read_ids(const std::string& file);

}  // namespace tandem::cli
