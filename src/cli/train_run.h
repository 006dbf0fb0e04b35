// A run of `tandem train` over a group of workers, from the first batch to the last file.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/progress_bar.h"
#include "cli/terminal.h"
#include "cli/train_folder.h"
#include "cli/train_log.h"
#include "cluster/conductor.h"
#include "train/data.h"

namespace tandem::cli {

class TrainRun {
 public:
  TrainRun(const TrainFlags& flags, const std::filesystem::path& model, std::vector<TrainLog::Fact> facts)
      : flags_(flags), log_(flags.out, std::move(facts)), dtype_(result_dtype(flags, model)) {}

  // From the last checkpoint on; after the last step it also evaluates on `test`. Whether it came to its end:
  // Ctrl-C stops it after a step, twice at once (Interrupted). ClusterError where the group is lost,
  // InputError where losses or gradients are no longer finite.
  bool train(cluster::Conductor& conductor, train::Batches batches, const std::vector<train::Sequence>& valid,
             const std::vector<train::Sequence>& test);

  nlohmann::json summary() const;

 private:
  using Clock = std::chrono::steady_clock;
  // In JSON null.
  static constexpr double not_there = std::numeric_limits<double>::quiet_NaN();

  nlohmann::json carry_out(const nlohmann::json& order);
  [[noreturn]] void diverged(int number, const std::string& what);
  // From the last checkpoint on, where there is one.
  void begin(train::Batches& batches);
  void step(int number, train::Batches& batches);
  void report(int number);
  // Draws over the line on a terminal that says how far the run is.
  void show(int number);
  // A line that stays.
  template <typename... T>
  void say(fmt::format_string<T...> format, T&&... arguments) {
    line_.clear();
    note(format, std::forward<T>(arguments)...);
  }
  std::string time_left(int number) const;
  // The mean over so many micro-batches' tokens, -1: all; NaN where it is not finite or there are none.
  double loss_of(const std::vector<train::Sequence>& texts, int batches);
  // After so many steps.
  void evaluate(int number, const std::vector<train::Sequence>& valid);
  void evaluate_test(const std::vector<train::Sequence>& texts);
  void save_result();
  void save(int number);

  const TrainFlags& flags_;
  cluster::Conductor* conductor_ = nullptr;
  TrainLog log_;
  StatusLine line_;
  std::string dtype_;
  Clock::time_point start_;
  int first_ = 1;
  // Since the last report.
  double nll_ = 0, seconds_ = 0, link_s_ = 0;
  std::int64_t tokens_ = 0;
  // The last ones.
  double rate_ = 0, norm_ = 0, last_speed_ = 0, last_loss_ = not_there, last_valid_ = not_there,
         test_loss_ = not_there;
  std::int64_t all_tokens_ = 0;
  std::uint64_t peak_bytes_ = 0;
  int skipped_ = 0, left_out_in_a_row_ = 0;
  int saved_ = 0;  // the step of the last checkpoint; 0: there is none
  int taken_ = 0;  // steps since the last one
};

}  // namespace tandem::cli
