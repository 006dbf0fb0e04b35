#include "cli/pin.h"

#include <fmt/format.h>

#include <charconv>
#include <numeric>

#include "base/error.h"
#include "base/limits.h"
#include "cli/terminal.h"

namespace tandem::cli {
namespace {

// A core's number from the start of `text`, which is cut off; -1 where there is none.
int take_core(std::string_view& text) {
  int core = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), core);
  if (error != std::errc() || core < 0 || core >= limits::cores) return -1;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return core;
}

std::vector<int> parse_cores(const std::string& word) {
  std::string_view text = word;
  const int first = take_core(text);
  int last = first;
  if (first >= 0 && !text.empty() && text.front() == '-') {
    text.remove_prefix(1);
    last = take_core(text);
  }
  if (first < 0 || last < first || !text.empty()) {
    throw InputError(
        fmt::format("--pin: \"{}\" is neither a core nor a range of cores; give 0,1 or 0-3,4-7", word));
  }
  std::vector<int> cores(static_cast<std::size_t>(last - first + 1));
  std::iota(cores.begin(), cores.end(), first);
  return cores;
}

}  // namespace

std::vector<std::vector<int>> parse_pin(const std::vector<std::string>& words, const parallel::Plan& plan) {
  std::vector<std::vector<int>> cores;
  for (const auto& word : words) cores.push_back(parse_cores(word));
  if (words.empty()) return cores;
  std::size_t local = 0;
  for (int rank = 0; rank < plan.world_size(); ++rank) local += plan.rank(rank).host == "local";
  if (local != words.size()) {
    throw InputError(
        fmt::format("--pin names the cores of {}, but {} run on this machine: give one core or range for "
                    "each",
                    counted(words.size(), "rank"), local));
  }
  return cores;
}

}  // namespace tandem::cli
