#include "cli/train_log.h"

#include <fmt/format.h>

#include "base/atomic_file.h"
#include "base/error.h"
#include "cli/terminal.h"
#include "hardware/machine.h"
#include "train/report.h"

namespace tandem::cli {
namespace {

using nlohmann::json;

// Lines that are whole; one that a full disk or a kill cut short is left out.
std::vector<json> read_lines(const std::filesystem::path& path) {
  std::vector<json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    auto object = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (object.is_object()) lines.push_back(std::move(object));
  }
  return lines;
}

}  // namespace

TrainLog::TrainLog(std::filesystem::path folder, std::vector<Fact> facts)
    : folder_(std::move(folder)),
      facts_(std::move(facts)),
      lines_(read_lines(folder_ / "metrics.jsonl")),
      events_(folder_, hardware::host_name()) {}

void TrainLog::go_on_after(int step) {
  const auto come_again = [step](const json& line) { return step == 0 || line.value("step", 0) > step; };
  std::erase_if(lines_, come_again);
  metrics_.close();
  try {
    std::string whole;
    for (const auto& line : lines_) whole += line.dump() + '\n';
    write_file(folder_ / "metrics.jsonl", whole);
  } catch (const InputError& error) {
    warn(error.what());
  }
  metrics_.open(folder_ / "metrics.jsonl", std::ios::app);
  events_.begin_after(step);
}

void TrainLog::note(const json& line) {
  lines_.push_back(line);
  metrics_ << line.dump() << std::endl;
  std::vector<std::pair<std::string, float>> scalars;
  for (const auto& [name, value] : line.items()) {
    if (name != "step" && value.is_number()) scalars.push_back({name, value.get<float>()});
  }
  events_.add(line["step"], scalars);
  if (!metrics_ || !events_.ok()) warn("metrics.jsonl or TensorBoard's events cannot be written");
}

void TrainLog::write_report() {
  try {
    write_file(folder_ / "report.html", train::html_report("Training: " + folder_.string(), facts_, lines_));
  } catch (const InputError& error) {
    warn(error.what());
  }
}

void TrainLog::warn(const std::string& why) {
  if (!warned_) cli::note("{}: {}; training goes on without\n", folder_.string(), why);
  warned_ = true;
}

}  // namespace tandem::cli
