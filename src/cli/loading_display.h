// How far each rank's weights are, on stderr: a line a rank, drawn over while it changes on a terminal; of a
// load that took a while, a line that stays, on a terminal or not.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "cli/progress_bar.h"
#include "cluster/protocol.h"

namespace tandem::cli {

// A line a rank, or one for all where there are more than `rows` have room for; each fits in `columns`.
// `speeds`: bytes a second, as ranks.
std::vector<std::string> loading_lines(const std::vector<std::string>& hosts,
                                       const std::vector<cluster::Progress>& ranks,
                                       const std::vector<double>& speeds, std::size_t columns,
                                       std::size_t rows);

class LoadingDisplay {
 public:
  // Each rank's host.
  explicit LoadingDisplay(std::vector<std::string> hosts)
      : hosts_(std::move(hosts)), meters_(hosts_.size()) {}

  void show(const std::vector<cluster::Progress>& ranks);
  // All is loaded.
  void finish();
  void clear();

 private:
  void draw();

  std::vector<std::string> hosts_;
  std::vector<cluster::Progress> ranks_;
  std::vector<SpeedMeter> meters_;
  std::optional<SpeedMeter::Time> begin_;
  SpeedMeter::Time drawn_;
  std::size_t lines_ = 0;  // on the screen
};

}  // namespace tandem::cli
