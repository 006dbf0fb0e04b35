#include "cli/pull_display.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "cli/terminal.h"

namespace tandem::cli {
namespace {

constexpr std::size_t longest_name = 60;

}  // namespace

void PullDisplay::planned(const std::string& commit, const std::vector<weights::HubFile>& files,
                          const weights::PullProgress& progress) {
  for (const auto& file : files) name_width_ = std::max(name_width_, file.path.size());
  name_width_ = std::min(name_width_, longest_name);
  const auto here = progress.present_files == progress.files ? std::string("all here already")
                                                             : format_bytes(progress.present_bytes) + " here";
  cli::note("{}: commit {}, {}, {}, {}\n", bold(model_), commit.substr(0, 12),
            counted(progress.files, "file"), format_bytes(progress.total_bytes), here);
}

void PullDisplay::progress(const weights::PullProgress& progress) {
  bar_.show({progress.total_bytes, progress.present_bytes, progress.fetched_bytes,
             fmt::format("{} of {} files", progress.present_files, progress.files)});
}

void PullDisplay::finished(const weights::HubFile& file) {
  bar_.note(fmt::format("{:<{}}  {:>8}", file.path, name_width_, format_bytes(*file.size)));
}

void PullDisplay::note(const std::string& line) { bar_.note(dim(line)); }

}  // namespace tandem::cli
