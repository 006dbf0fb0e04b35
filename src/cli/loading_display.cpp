#include "cli/loading_display.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "cli/terminal.h"

namespace tandem::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr milliseconds quiet{500};  // a load that takes no longer shows nothing
constexpr milliseconds redraw_every{100};
constexpr seconds worth_a_line{2};

bool has_begun(const cluster::Progress& rank) { return rank.total_bytes > 0; }
bool done(const cluster::Progress& rank) { return has_begun(rank) && rank.read_bytes == rank.total_bytes; }

BytesDone sum_of(const std::vector<cluster::Progress>& ranks) {
  BytesDone sum{.parts = fmt::format("all {} ranks", ranks.size())};
  for (const auto& rank : ranks) {
    sum.total_bytes += rank.total_bytes;
    sum.there_bytes += rank.read_bytes;
  }
  return sum;
}

// Not by fmt::print, which throws where stderr is closed.
void write(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

std::string to_first_of(std::size_t lines) {
  return lines > 1 ? fmt::format("\033[{}A\r", lines - 1) : std::string("\r");
}

}  // namespace

std::vector<std::string> loading_lines(const std::vector<std::string>& hosts,
                                       const std::vector<cluster::Progress>& ranks,
                                       const std::vector<double>& speeds, std::size_t columns,
                                       std::size_t rows) {
  if (ranks.size() > 1 && ranks.size() >= rows)
    return {bar_line(sum_of(ranks), std::accumulate(speeds.begin(), speeds.end(), 0.0), columns)};
  std::vector<std::string> names, lines;
  for (std::size_t i = 0; i < ranks.size(); ++i) names.push_back(fmt::format("rank {} ({})", i, hosts[i]));
  std::size_t width = 0;  // of all names, so that all bars are as wide
  for (const auto& name : names) width = std::max(width, name.size());
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    const auto name = fmt::format("{:<{}}", names[i], width);
    lines.push_back(has_begun(ranks[i])
                        ? bar_line({ranks[i].total_bytes, ranks[i].read_bytes, 0, name}, speeds[i], columns)
                        : fmt::format("{} has not begun", names[i]).substr(0, columns - 1));
  }
  return lines;
}

void LoadingDisplay::show(const std::vector<cluster::Progress>& ranks) {
  const auto now = steady_clock::now();
  if (!begin_) begin_ = now;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    // A rank that is done keeps the speed that it had.
    const bool was_done = i < ranks_.size() && done(ranks_[i]);
    if (has_begun(ranks[i]) && !was_done) meters_[i].add(now, ranks[i].read_bytes);
  }
  ranks_ = ranks;
  if (!stderr_is_terminal() || now - *begin_ < quiet || now - drawn_ < redraw_every) return;
  drawn_ = now;
  draw();
}

void LoadingDisplay::draw() {
  std::vector<double> speeds;
  for (const auto& meter : meters_) speeds.push_back(meter.bytes_per_s());
  const auto [columns, rows] = stderr_size();
  const auto lines = loading_lines(hosts_, ranks_, speeds, columns, rows);
  std::string text = lines_ > 0 ? to_first_of(lines_) : "";
  for (const auto& line : lines) text += (&line == &lines.front() ? "\r\033[K" : "\n\r\033[K") + line;
  write(text);
  lines_ = lines.size();
}

void LoadingDisplay::clear() {
  if (lines_ > 0) write(to_first_of(lines_) + "\033[J");
  lines_ = 0;
}

void LoadingDisplay::finish() {
  clear();
  if (!begin_ || steady_clock::now() - *begin_ < worth_a_line) return;
  const std::chrono::duration<double> time = steady_clock::now() - *begin_;
  const auto bytes = sum_of(ranks_).total_bytes;
  const auto speed = static_cast<std::uint64_t>(static_cast<double>(bytes) / time.count());
  write(dim(fmt::format("loaded {} in {:.1f} s, {}/s", format_bytes(bytes), time.count(),
                        format_bytes(speed))) +
        "\n");
}

}  // namespace tandem::cli
