#include "cli/progress_bar.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "cli/terminal.h"

namespace tandem::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds speed_window{5};
constexpr milliseconds sample_every{100};
constexpr milliseconds redraw_every{100};
constexpr seconds line_every{10};  // where stderr is no terminal
constexpr std::size_t bar_cells = 20, fewest_bar_cells = 5;

double fraction(const BytesDone& done) {
  if (done.total_bytes == 0) return 1;
  return static_cast<double>(done.there_bytes) / static_cast<double>(done.total_bytes);
}

}  // namespace

std::string bar(double done, std::size_t cells) {
  std::string text;
  for (std::size_t i = 0; i < cells; ++i)
    text += static_cast<double>(i) < done * static_cast<double>(cells) ? "█" : "░";
  return text;
}

void SpeedMeter::add(Time now, std::uint64_t bytes) {
  if (!samples_.empty() && now - samples_.back().time < sample_every) return;
  samples_.push_back({now, bytes});
  while (samples_.size() > 2 && now - samples_.front().time > speed_window) samples_.pop_front();
}

double SpeedMeter::bytes_per_s() const {
  if (samples_.size() < 2) return 0;
  const auto time = std::chrono::duration<double>(samples_.back().time - samples_.front().time);
  return static_cast<double>(samples_.back().bytes - samples_.front().bytes) / time.count();
}

std::string format_time_left(double bytes, double bytes_per_s) {
  constexpr double longest_s = 99 * 3600;
  if (bytes_per_s <= 0 || bytes / bytes_per_s > longest_s) return "-";
  const auto s = static_cast<int>(bytes / bytes_per_s + 0.5);
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

std::string progress_line(const BytesDone& done, double bytes_per_s) {
  const auto left = static_cast<double>(done.total_bytes - done.there_bytes);
  return fmt::format("{:3.0f} %  {:>8} of {:>8}  {:>8}/s  {:>8} left  {}", 100 * fraction(done),
                     format_bytes(done.there_bytes), format_bytes(done.total_bytes),
                     format_bytes(static_cast<std::uint64_t>(bytes_per_s)),
                     format_time_left(left, bytes_per_s), done.parts);
}

std::string bar_line(const BytesDone& done, double bytes_per_s, std::size_t columns) {
  const auto line = progress_line(done, bytes_per_s);
  const std::size_t others = line.size() + 2;
  const std::size_t cells = std::min(bar_cells, columns - std::min(columns, others));
  // A line that wraps could not be drawn over.
  return (cells >= fewest_bar_cells ? bar(fraction(done), cells) + " " : "") + line.substr(0, columns - 1);
}

void StatusLine::draw(const std::string& line) {
  const auto now = std::chrono::steady_clock::now();
  if (!stderr_is_terminal() || now - drawn_ < redraw_every) return;
  drawn_ = now;
  cli::note("\r\033[K{}", line);
  std::fflush(stderr);
  on_screen_ = true;
}

void StatusLine::clear() {
  if (on_screen_) cli::note("\r\033[K");
  on_screen_ = false;
}

void ProgressBar::show(const BytesDone& done) {
  const auto now = std::chrono::steady_clock::now();
  speed_.add(now, done.moved_bytes);
  if (stderr_is_terminal()) return line_.draw(bar_line(done, speed_.bytes_per_s(), stderr_size().columns));
  if (now - shown_ < line_every) return;
  shown_ = now;
  cli::note("  {}\n", progress_line(done, speed_.bytes_per_s()));
}

void ProgressBar::note(const std::string& line) {
  clear();
  cli::note("  {}\n", line);
}

}  // namespace tandem::cli
