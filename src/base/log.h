// Log lines on stderr. stdout belongs to results.
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace tandem::log {

enum class Level { error, warning, info, debug };

// Lines above this level are dropped; `who` ("rank 1") stands in front of every line. Call before any thread
// starts.
void configure(Level level, std::string_view who = "");

void write(Level level, std::string_view line);

template <typename... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::error, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::warning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::info, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::debug, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace tandem::log
