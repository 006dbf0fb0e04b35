// How --help shows options, and what an option may be.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

namespace tandem::cli {

// CLI11's own text, but for the ranges of numbers and for the word for a verb.
std::shared_ptr<CLI::Formatter> help_formatter();

// For the options of a verb that say which workers it has: a group of their own, after the verb's.
inline constexpr const char* cluster_group = "Cluster";

// An option's least value.
template <typename Number>
CLI::Validator at_least(Number least) {
  const auto check = [least](const std::string& text) {
    Number value{};
    const bool allowed = CLI::detail::lexical_cast(text, value) && value >= least;
    return allowed ? std::string() : fmt::format("{} is not allowed: give {} or more", text, least);
  };
  return CLI::Validator(check, "");
}

}  // namespace tandem::cli
