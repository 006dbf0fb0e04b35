// What a training run writes down as it goes: metrics.jsonl, TensorBoard's events and report.html.
#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "train/event_file.h"

namespace tandem::cli {

class TrainLog {
 public:
  using Fact = std::pair<std::string, std::string>;

  // `facts`: what the run is, for the report. Goes on with a metrics.jsonl that is there.
  TrainLog(std::filesystem::path folder, std::vector<Fact> facts);

  // Forgets what stands there of later steps: they come again.
  void go_on_after(int step);
  // Numbers at a "step". A log that cannot be written is warned of once: training goes on.
  void note(const nlohmann::json& line);
  void write_report();

 private:
  void warn(const std::string& why);

  std::filesystem::path folder_;
  std::vector<Fact> facts_;
  std::vector<nlohmann::json> lines_;
  std::ofstream metrics_;
  train::EventFile events_;
  bool warned_ = false;
};

}  // namespace tandem::cli
