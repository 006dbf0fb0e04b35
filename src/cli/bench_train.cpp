#include "cli/bench_train.h"

#include <fmt/format.h>

#include <random>
#include <vector>

#include "cli/bench_figures.h"
#include "cli/terminal.h"
#include "cluster/train_worker.h"

namespace tandem::cli {

using nlohmann::json;

json bench_training(cluster::Conductor& conductor, const BenchTraining& sizes) {
  std::mt19937 random(1);
  std::vector<train::Sequence> batch(sizes.batch);
  for (auto& sequence : batch) {
    for (int t = 0; t <= sizes.tokens; ++t)
      sequence.ids.push_back(static_cast<int>(random() % static_cast<unsigned>(sizes.vocabulary)));
  }
  const json order{
      {"step", {{"batches", json::array({cluster::sequences_to_json(batch)})}, {"learning_rate", 0.0}}}};
  conductor.carry_out(order);
  std::vector<double> seconds;
  double link_s = 0;
  std::uint64_t peak_bytes = 0;
  int recomputed_every = 0;
  for (int i = 0; i < sizes.repeat; ++i) {
    const json done = conductor.carry_out(order);
    seconds.push_back(done["seconds"]);
    link_s += done["link_s"].get<double>();
    peak_bytes = done["peak_bytes"];
    recomputed_every = done["recomputed_every"];
    note("{}\n", dim(fmt::format("step {} of {}", i + 1, sizes.repeat)));
  }
  return {{"tokens", sizes.batch * sizes.tokens},
          {"step_s", seconds},
          {"link_s", link_s},
          {"recomputed_every", recomputed_every},
          {"peak_bytes", peak_bytes}};
}

std::string describe_training(const std::string& name, const json& result) {
  const auto seconds = result["step_s"].get<std::vector<double>>();
  const auto [median, least, most] = spread_of(seconds);
  const double tokens = result["tokens"];
  double all_s = 0;
  for (const double one : seconds) all_s += one;
  return name + '\n' +
         format_table({{"tokens", "step", "tokens/s", "least..most", "link", "peak"},
                       {fmt::format("{:.0f}", tokens), fmt::format("{:.3f} s", median),
                        fmt::format("{:.1f}", tokens / median),
                        fmt::format("{:.1f}..{:.1f}", tokens / most, tokens / least),
                        fmt::format("{:.1f} %", 100 * result["link_s"].get<double>() / all_s),
                        format_bytes(result["peak_bytes"])}});
}

}  // namespace tandem::cli
