#include "cli/ids_input.h"

#include <fmt/format.h>

#include <charconv>

#include "base/error.h"
#include "base/file.h"

namespace tandem::cli {

std::vector<int> parse_ids(std::string_view text, const std::string& source) {
  constexpr std::string_view separators = ", \t\r\n";
  const auto strip = [&](std::string_view part) {
    const auto first = part.find_first_not_of(separators);
    if (first == std::string_view::npos) return std::string_view{};
    return part.substr(first, part.find_last_not_of(separators) - first + 1);
  };
  text = strip(text);
  if (text.size() >= 2 && text.front() == '[' && text.back() == ']')
    text = strip(text.substr(1, text.size() - 2));
  std::vector<int> ids;
  while (!text.empty()) {
    const std::string_view word = text.substr(0, text.find_first_of(separators));
    int id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size()) {
      throw InputError(fmt::format("{}: \"{}\" is no token id; give whole numbers, separated by commas",
                                   source, word.substr(0, 40)));
    }
    ids.push_back(id);
    text.remove_prefix(word.size());
    text = strip(text);
  }
  if (ids.empty()) throw InputError(fmt::format("{}: no token ids", source));
  return ids;
}

std::vector<int> read_ids(const std::string& file) { return parse_ids(read_file(file), file); }

}  // namespace tandem::cli
