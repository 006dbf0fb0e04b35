// How --help shows options, and what an option may be.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>

namespace tandem::cli {

// CLI11's own text, but for the ranges of numbers and for the word for a verb.
std::shared_ptr<CLI::Formatter> help_formatter();

// For the options of a verb that say which workers it has: a group of their own, after the verb's.
inline constexpr const char* cluster_group = "Cluster";

// An option's least value; neither NaN nor infinity.
template <typename Number>
CLI::Validator at_least(Number least) {
  const auto check = [least](const std::string& text) {
    Number value{};
    const bool allowed = CLI::detail::lexical_cast(text, value) && value >= least &&
                         value <= std::numeric_limits<Number>::max();
    return allowed ? std::string() : fmt::format("{} is not allowed: give {} or more", text, least);
  };
  return CLI::Validator(check, "");
}

// From 0 on, below 1, as a float too.
inline CLI::Validator below_one() {
  const auto check = [](const std::string& text) {
    float value = 0;
    const bool allowed = CLI::detail::lexical_cast(text, value) && value >= 0 && value < 1;
    return allowed ? std::string() : fmt::format("{} is not allowed: give 0 or more, below 1", text);
  };
  return CLI::Validator(check, "");
}

// Digits alone, of a number below 2^64.
inline CLI::Validator whole_number() {
  const auto check = [](const std::string& text) {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool allowed = error == std::errc() && end == text.data() + text.size();
    return allowed ? std::string() : fmt::format("{} is not allowed: give a whole number", text);
  };
  return CLI::Validator(check, "");
}

inline CLI::Validator not_zero() {
  const auto check = [](const std::string& text) {
    int value = 0;
    const bool zero = CLI::detail::lexical_cast(text, value) && value == 0;
    return zero ? std::string("0 is not allowed: give -1 for all, or 1 or more") : std::string();
  };
  return CLI::Validator(check, "");
}

}  // namespace tandem::cli
