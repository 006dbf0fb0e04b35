// What the user sees: units and tables. Results go to stdout, all else to stderr.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tandem::cli {

// To stderr, whether or not it still takes anything: no work ends because nobody reads of it.
template <typename... T>
void note(fmt::format_string<T...> format, T&&... arguments) {
  const std::string text = fmt::format(format, std::forward<T>(arguments)...);
  (void)std::fwrite(text.data(), 1, text.size(), stderr);
}

bool stdin_is_terminal();
bool stdout_is_terminal();
bool stderr_is_terminal();

struct TerminalSize {
  std::size_t columns = 80, rows = 24;
};
TerminalSize stderr_size();
TerminalSize stdout_size();

// stdout cannot take a result. `broken_pipe`: whoever read it has gone, as after `| head`.
class OutputError : public std::runtime_error {
 public:
  explicit OutputError(int error);
  bool broken_pipe() const { return broken_pipe_; }

 private:
  bool broken_pipe_;
};

// Writes a result, or a piece of one, to stdout at once. OutputError where that fails.
void print_result(std::string_view text);

// "9.9 MB", decimal units.
std::string format_bytes(std::uint64_t bytes);
// "1 rank", "2 ranks".
std::string counted(std::size_t count, const std::string& noun);
// Dimmed on a terminal that wants colour (NO_COLOR unset), as it is elsewhere.
std::string dim(const std::string& text);
std::string bold(const std::string& text);

// Rows of cells as aligned columns; the first row is the head.
std::string format_table(const std::vector<std::vector<std::string>>& rows);

}  // namespace tandem::cli
