// A run of `tandem train` over a group of workers, from the first batch to the last file.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/train_folder.h"
#include "cli/train_log.h"
#include "cluster/conductor.h"
#include "train/data.h"

namespace tandem::cli {

class TrainRun {
 public:
  TrainRun(const TrainFlags& flags, const std::filesystem::path& model, std::vector<TrainLog::Fact> facts)
      : flags_(flags), log_(flags.out, std::move(facts)), dtype_(result_dtype(flags, model)) {}

  // From the last checkpoint on. Whether it came to its end: Ctrl-C stops it after a step. ClusterError where
  // the group is lost.
  bool train(cluster::Conductor& conductor, train::Batches batches,
             const std::vector<train::Sequence>& valid);

  nlohmann::json summary() const;

 private:
  using Clock = std::chrono::steady_clock;
  // In JSON null.
  static constexpr double not_there = std::numeric_limits<double>::quiet_NaN();

  void step(int number, train::Batches& batches);
  void report(int number);
  // After so many steps.
  void evaluate(int number, const std::vector<train::Sequence>& valid);
  void save(int number);

  const TrainFlags& flags_;
  cluster::Conductor* conductor_ = nullptr;
  TrainLog log_;
  std::string dtype_;
  Clock::time_point start_;
  int first_ = 1;
  // Since the last report.
  double nll_ = 0, seconds_ = 0, link_s_ = 0;
  std::int64_t tokens_ = 0;
  // The last ones.
  double rate_ = 0, norm_ = 0, last_speed_ = 0, last_loss_ = not_there, last_valid_ = not_there;
  std::int64_t all_tokens_ = 0;
  std::uint64_t peak_bytes_ = 0;
  int skipped_ = 0;
};

}  // namespace tandem::cli
