#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <memory>
#include <string>

namespace tandem::log {
namespace {

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::error:
      return spdlog::level::err;
    case Level::warning:
      return spdlog::level::warn;
    case Level::info:
      return spdlog::level::info;
    case Level::debug:
      return spdlog::level::debug;
  }
  return spdlog::level::info;
}

std::shared_ptr<spdlog::logger> make_logger(Level level, std::string_view who) {
  const auto mode = std::getenv("NO_COLOR") ? spdlog::color_mode::never : spdlog::color_mode::automatic;
  auto logger =
      std::make_shared<spdlog::logger>("tandem", std::make_shared<spdlog::sinks::stderr_color_sink_mt>(mode));
  logger->set_level(to_spdlog(level));
  logger->set_pattern(who.empty() ? "%^%l%$: %v" : fmt::format("%^%l%$: {}: %v", who));
  return logger;
}

std::shared_ptr<spdlog::logger>& logger() {
  static auto instance = make_logger(Level::warning, "");
  return instance;
}

}  // namespace

void configure(Level level, std::string_view who) { logger() = make_logger(level, who); }

void write(Level level, std::string_view line) { logger()->log(to_spdlog(level), line); }

}  // namespace tandem::log
