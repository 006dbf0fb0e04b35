// How far a long piece of work is, on stderr: as a bar that is drawn over on a terminal, elsewhere as a line
// now and then.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <string>

namespace tandem::cli {

// Bytes a second over the last five seconds.
class SpeedMeter {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // `bytes`: moved by `now`, since the start.
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

struct BytesDone {
  std::uint64_t total_bytes = 0;
  std::uint64_t there_bytes = 0;
  std::uint64_t moved_bytes = 0;  // of which the speed is
  std::string parts;              // "3 of 12 files"
};

// " 42 %    4.2 GB of  10.1 GB   118.3 MB/s     0:49 left  3 of 12 files": columns of fixed widths.
std::string progress_line(const BytesDone& done, double bytes_per_s);

// The same with a bar before it, as wide as there is room for, cut to `columns` of a terminal, less one.
std::string bar_line(const BytesDone& done, double bytes_per_s, std::size_t columns);

// `cells` characters, of which the first are full.
std::string bar(double done, std::size_t cells);

// The last line of a terminal, drawn over; elsewhere nothing.
class StatusLine {
 public:
  ~StatusLine() { clear(); }
  // At most ten times a second. One that fits into the terminal's columns, less one.
  void draw(const std::string& line);
  void clear();

 private:
  std::chrono::steady_clock::time_point drawn_ = std::chrono::steady_clock::now();
  bool on_screen_ = false;
};

class ProgressBar {
 public:
  void show(const BytesDone& done);
  // A line that stays.
  void note(const std::string& line);
  void clear() { line_.clear(); }

 private:
  SpeedMeter speed_;
  std::chrono::steady_clock::time_point shown_ = std::chrono::steady_clock::now();
  StatusLine line_;
};

}  // namespace tandem::cli
