#include "cli/size.h"

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <regex>

#include "base/error.h"

namespace tandem::cli {

std::uint64_t parse_size(const std::string& text, const std::string& flag) {
  static const std::map<std::string, double> units{{"", 1},       {"B", 1},           {"KB", 1e3},
                                                   {"MB", 1e6},   {"GB", 1e9},        {"TB", 1e12},
                                                   {"KIB", 1024}, {"MIB", 1048576.0}, {"GIB", 1073741824.0}};
  static const std::regex form(R"(([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([A-Za-z]*))");
  std::smatch parts;
  if (std::regex_match(text, parts, form)) {
    std::string unit = parts[2];
    for (char& c : unit) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    const auto found = units.find(unit);
    const double bytes = found == units.end() ? 0 : std::stod(parts[1]) * found->second;
    if (bytes >= 1 && bytes < 1e18) return static_cast<std::uint64_t>(bytes);
  }
  throw InputError(fmt::format("{} \"{}\" is no size such as 500MB, 5GB or 2GiB", flag, text));
}

}  // namespace tandem::cli
