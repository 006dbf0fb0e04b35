// What the user sees of a pull, on stderr: a line for each file that is there, and how far all is.
#pragma once

#include <string>
#include <vector>

#include "cli/progress_bar.h"
#include "weights/hub_client.h"

namespace tandem::cli {

class PullDisplay {
 public:
  explicit PullDisplay(std::string model) : model_(std::move(model)) {}

  void planned(const std::string& commit, const std::vector<weights::HubFile>& files,
               const weights::PullProgress& progress);
  void progress(const weights::PullProgress& progress);
  void finished(const weights::HubFile& file);
  void note(const std::string& line);
  void clear() { bar_.clear(); }

 private:
  std::string model_;
  std::size_t name_width_ = 0;
  ProgressBar bar_;
};

}  // namespace tandem::cli
