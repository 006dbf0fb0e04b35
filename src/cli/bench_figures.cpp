#include "cli/bench_figures.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/terminal.h"

namespace tandem::cli {
namespace {

std::string percent(double share) { return fmt::format("{:.1f} %", 100 * share); }
std::string gigabytes_per_s(double bytes_per_s) { return fmt::format("{:.2f} GB/s", bytes_per_s / 1e9); }

// What a rank reads of its weights in decoding: all of them for a token of each sequence.
double read_bytes_per_s(const BenchFigures& figures, const cluster::RankState& rank) {
  return static_cast<double>(rank.ready->step_bytes) * figures.decode.tokens_per_s().median / figures.batch;
}

// What a rank's products have read for one token of one sequence, counted.
double counted_bytes(const Phase& decode, std::size_t rank) {
  return static_cast<double>(decode.ranks[rank].panel_bytes) / decode.steps_tokens;
}

double read_bytes_per_s(const BenchFigures& figures) {
  double sum = 0;
  for (const auto& rank : figures.ranks) sum += read_bytes_per_s(figures, rank);
  return sum;
}

std::string describe_speeds(const BenchFigures& figures) {
  std::vector<std::vector<std::string>> rows{
      {"", "tokens", "tokens/s", "least..most", "first token", "weights read"}};
  const auto add = [&](const char* name, const Phase& phase, const std::string& first,
                       const std::string& read) {
    if (phase.tokens == 0) return;
    const Spread speed = phase.tokens_per_s();
    rows.push_back({name, std::to_string(phase.tokens), fmt::format("{:.2f}", speed.median),
                    fmt::format("{:.2f}..{:.2f}", speed.least, speed.most), first, read});
  };
  if (figures.prefill.tokens > 0) {
    const double first_s = spread_of(figures.prefill.seconds).median;
    add("prefill", figures.prefill, fmt::format("{:.3f} s", first_s), "");
  }
  if (figures.decode.tokens > 0) {
    add("decode", figures.decode, "", gigabytes_per_s(read_bytes_per_s(figures)));
  }
  return format_table(rows);
}

std::string describe_ranks(const BenchFigures& figures) {
  std::vector<std::vector<std::string>> rows{
      {"rank", "host", "device", "threads", "weights", "memory", "peak", "cache"}};
  const bool counts = figures.decode.tokens > 0 && figures.decode.ranks[0].panel_bytes > 0;
  if (counts) rows[0].insert(rows[0].end(), {"read a token", "active weights"});
  for (std::size_t i = 0; i < figures.ranks.size(); ++i) {
    const auto& rank = figures.ranks[i];
    rows.push_back({std::to_string(i), rank.host, rank.ready->device, std::to_string(rank.ready->threads),
                    format_bytes(rank.ready->weight_bytes), format_bytes(rank.status.resident_bytes),
                    format_bytes(rank.status.peak_bytes), format_bytes(rank.status.cache_bytes)});
    if (counts) {
      rows.back().push_back(format_bytes(static_cast<std::uint64_t>(counted_bytes(figures.decode, i))));
      rows.back().push_back(format_bytes(rank.ready->step_bytes));
    }
  }
  return format_table(rows);
}

// What each rank's time went into.
std::string describe_times(const BenchFigures& figures) {
  std::vector<std::vector<std::string>> rows{{"rank"}};
  for (std::size_t i = 0; i < figures.ranks.size(); ++i) rows.push_back({std::to_string(i)});
  const std::vector<std::pair<const char*, const Phase*>> phases{{"prefill", &figures.prefill},
                                                                 {"decode", &figures.decode}};
  for (const auto& [name, phase] : phases) {
    if (phase->tokens == 0) continue;
    for (const char* part : {"compute", "link", "rest"}) rows[0].push_back(fmt::format("{}: {}", name, part));
    for (std::size_t i = 0; i < figures.ranks.size(); ++i) {
      const TimeShares shares = shares_of(phase->ranks[i], phase->wall_s);
      for (const double share : {shares.compute, shares.link, shares.rest})
        rows[i + 1].push_back(percent(share));
    }
  }
  return format_table(rows);
}

nlohmann::json json_of(const Spread& spread) {
  return {{"median", spread.median}, {"least", spread.least}, {"most", spread.most}};
}

nlohmann::json json_of(const Phase& phase) {
  return {{"tokens", phase.tokens},
          {"tokens_per_s", json_of(phase.tokens_per_s())},
          {"seconds", json_of(spread_of(phase.seconds))},
          {"repeats_s", phase.seconds}};
}

nlohmann::json json_of(const TimeShares& shares) {
  return {{"compute", shares.compute}, {"link", shares.link}, {"rest", shares.rest}};
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  const double median = values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  return {median, values.front(), values.back()};
}

Spread Phase::tokens_per_s() const {
  std::vector<double> speeds;
  for (const double s : seconds) speeds.push_back(s > 0 ? tokens / s : 0);
  return spread_of(std::move(speeds));
}

TimeShares shares_of(const RankWork& work, double wall_s) {
  if (wall_s <= 0) return {};
  const double whole = std::max(wall_s, work.step_s);  // steps that no token waits for count too
  const double compute = (work.step_s - work.link_s) / whole, link = work.link_s / whole;
  return {compute, link, std::max(0.0, 1 - compute - link)};
}

std::string describe(const BenchFigures& figures) {
  const std::string batch = figures.batch > 1 ? fmt::format(", {} sequences at a time", figures.batch) : "";
  return fmt::format("{}{}{}, {}{}, {}\n{}\n{}\n{}", figures.model, figures.weights.empty() ? "" : ", ",
                     figures.weights, figures.plan, batch, counted(figures.repeat, "repeat"),
                     describe_speeds(figures), describe_ranks(figures), describe_times(figures));
}

nlohmann::json to_json(const BenchFigures& figures, nlohmann::json ranks) {
  nlohmann::json object{{"model", figures.model},
                        {"weights", figures.weights},
                        {"batch", figures.batch},
                        {"repeat", figures.repeat}};
  const auto add = [&](const char* name, const Phase& phase) {
    if (phase.tokens == 0) return;
    object[name] = json_of(phase);
    for (std::size_t i = 0; i < ranks.size(); ++i)
      ranks[i][name] = json_of(shares_of(phase.ranks[i], phase.wall_s));
  };
  add("prefill", figures.prefill);
  add("decode", figures.decode);
  if (figures.decode.tokens > 0) {
    object["decode"]["read_bytes_per_s"] = read_bytes_per_s(figures);
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      ranks[i]["decode"]["read_bytes_per_s"] = read_bytes_per_s(figures, figures.ranks[i]);
      if (figures.decode.ranks[i].panel_bytes > 0)
        ranks[i]["decode"]["counted_bytes_per_token"] = counted_bytes(figures.decode, i);
    }
  }
  object["ranks"] = std::move(ranks);
  return object;
}

nlohmann::json config_with_bits(nlohmann::json config, const std::string& bits, int group) {
  for (const char* field : {"quantization", "quantization_config", "dtype", "torch_dtype"})
    config.erase(field);
  config["torch_dtype"] = bits == "bf16" ? "bfloat16" : "float16";
  if (bits == "4" || bits == "8") {
    config["quantization"] = {{"bits", bits == "4" ? 4 : 8}, {"group_size", group}};
  }
  return config;
}

}  // namespace tandem::cli
