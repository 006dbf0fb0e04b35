// What the user sees of a pull, on stderr: a line for each file that is there, and how far all is: as a bar
// that is drawn over on a terminal, elsewhere as a line now and then.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "weights/hub_client.h"

namespace tandem::cli {

// Bytes a second over the last five seconds.
class SpeedMeter {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // `bytes`: fetched by `now`, since the start.
  void add(Time now, std::uint64_t bytes);
  double bytes_per_s() const;

 private:
  struct Sample {
    Time time;
    std::uint64_t bytes;
  };
  std::deque<Sample> samples_;
};

// "0:09", "12:34", "1:02:03"; "-" where it is not known.
std::string format_time_left(double bytes, double bytes_per_s);

// " 42 %    4.2 GB of  10.1 GB   118.3 MB/s     0:49 left  3 of 12 files": columns of fixed widths.
std::string progress_line(const weights::PullProgress& progress, double bytes_per_s);

class PullDisplay {
 public:
  explicit PullDisplay(std::string model) : model_(std::move(model)) {}

  void planned(const std::string& commit, const std::vector<weights::HubFile>& files,
               const weights::PullProgress& progress);
  void progress(const weights::PullProgress& progress);
  void finished(const weights::HubFile& file);
  void note(const std::string& line);
  void clear();

 private:
  std::string model_;
  std::size_t name_width_ = 0;
  SpeedMeter speed_;
  std::chrono::steady_clock::time_point shown_{};
  bool on_screen_ = false;
};

}  // namespace tandem::cli
