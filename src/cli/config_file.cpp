#include "cli/config_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "cli/terminal.h"

namespace tandem::cli {
namespace {

struct Entry {
  std::string name;   // of nested mappings "outer.inner", with "-"
  std::string given;  // the same as it stands in the file
  std::vector<std::string> values;
  int line;
};

// What mlx_lm.lora calls otherwise, or what is part of a mapping there.
const std::map<std::string, std::string, std::less<>> options_by_key{
    {"fine-tune-type", "method"},          {"lora-layers", "num-layers"},
    {"lora-parameters.rank", "lora-rank"}, {"lora-parameters.scale", "lora-scale"},
    {"lora-parameters.keys", "lora-keys"}, {"lr-schedule.name", "lr-schedule"},
    {"lr-schedule.warmup", "warmup"},      {"optimizer-config.weight-decay", "weight-decay"},
    {"optimizer-config.momentum", "beta1"}};
const std::map<std::string, std::string, std::less<>> schedules_by_name{{"cosine_decay", "cosine"},
                                                                        {"linear_schedule", "linear"}};
// Of mlx_lm.lora, where nothing here answers to it.
const std::set<std::string, std::less<>> without_meaning{"config", "clear-cache-threshold", "report-to",
                                                         "project-name", "trust-remote-code"};
// The only value of mlx_lm.lora's that is also what is done here.
const std::map<std::string, std::pair<double, const char*>, std::less<>> fixed_values{
    {"lora-parameters.dropout", {0, "there is no dropout here"}},
    {"optimizer-config.eps", {1e-8, "it is 1e-8 here"}}};
const std::map<std::string, const char*, std::less<>> always_true{
    {"train", "tandem train trains; tandem perplexity MODEL --adapter DIR evaluates"},
    {"optimizer-config.bias-correction", "moments are always corrected for their start"}};

// What mlx_lm.lora writes as mappings, perhaps empty ones.
const std::set<std::string, std::less<>> groups{"optimizer_config", "lora_parameters", "lr_schedule"};

std::optional<bool> truth_of(const std::string& value) {
  bool truth = false;
  if (!YAML::convert<bool>::decode(YAML::Node(value), truth)) return std::nullopt;
  return truth;
}

class ConfigFile {
 public:
  explicit ConfigFile(std::string path) : path_(std::move(path)) {}

  // As the options of the command line are called; of the optimizers' own those of `optimizer`, or of the
  // one that the file names.
  std::vector<Entry> read(std::string optimizer) {
    std::string text;
    try {
      text = read_file(path_);
    } catch (const InputError& error) {
      throw InputError(fmt::format("--config: {}", error.what()));
    }
    try {
      const auto documents = YAML::LoadAll(text);
      if (documents.size() > 1) throw wrong("it has several documents: give one");
      if (documents.empty() || !documents.front().IsMap()) throw wrong("it is no mapping of options");
      flatten(documents.front(), {});
    } catch (const YAML::Exception& error) {
      throw wrong(error.mark.line + 1, error.msg);
    }
    for (const auto& entry : entries_)
      if (entry.name == "optimizer" && optimizer.empty()) optimizer = entry.values.front();
    std::vector<Entry> options;
    for (auto& entry : entries_) {
      const std::string_view group = "optimizer-config.";
      if (entry.name.starts_with(group)) {
        const std::string own = fmt::format("{}{}.", group, optimizer.empty() ? "adamw" : optimizer);
        const auto dot = entry.name.find('.', group.size());
        const auto named = entry.name.substr(group.size(), dot - group.size());
        if (dot == entry.name.npos ||
            std::find(optimizer_names.begin(), optimizer_names.end(), named) == optimizer_names.end())
          throw wrong(entry.line,
                      fmt::format("{}: give optimizer_config: {{OPTIMIZER: {{…}}}}", entry.given));
        if (!entry.name.starts_with(own)) continue;
        entry.name = std::string(group) + entry.name.substr(own.size());
      }
      // A schedule's own rate comes before that of all steps.
      const bool first = entry.name == "lr-schedule.arguments";
      auto found = options_of(std::move(entry));
      options.insert(first ? options.begin() : options.end(), found.begin(), found.end());
    }
    return options;
  }

  InputError wrong(const std::string& why) const {
    return InputError(fmt::format("--config {}: {}", path_, why));
  }
  InputError wrong(int line, const std::string& why) const {
    return InputError(fmt::format("--config {}, line {}: {}", path_, line, why));
  }
  const std::string& only_value(const Entry& entry) const {
    if (entry.values.size() == 1) return entry.values.front();
    throw wrong(entry.line, fmt::format("{} takes one value", entry.given));
  }

 private:
  void flatten(const YAML::Node& map, const std::vector<std::string>& outer) {
    for (const auto& pair : map) {
      std::vector<std::string> path = outer;
      path.push_back(pair.first.as<std::string>());
      Entry entry{{}, fmt::format("{}", fmt::join(path, ".")), {}, pair.first.Mark().line + 1};
      entry.name = entry.given;
      std::replace(entry.name.begin(), entry.name.end(), '_', '-');
      if (++seen_ > limits::config_options || path.size() > limits::config_depth)
        throw wrong(entry.line, "it has too many options");
      const YAML::Node& value = pair.second;
      if (!names_.insert(entry.name).second)
        throw wrong(entry.line, fmt::format("{} stands there twice: give it once", entry.given));
      const bool empty = (value.IsMap() || value.IsSequence()) && value.size() == 0;
      if (empty && !groups.contains(path.front()))
        throw wrong(entry.line, fmt::format("{} has no value: give one, or leave it out", entry.given));
      if (value.IsMap()) flatten(value, path);
      if (value.IsScalar()) entry.values.push_back(value.Scalar());
      for (std::size_t i = 0; value.IsSequence() && i < value.size(); ++i)
        entry.values.push_back(value[i].as<std::string>());
      if (!entry.values.empty()) entries_.push_back(std::move(entry));
    }
  }

  std::vector<Entry> options_of(Entry entry) const {
    const auto tell = [&](const std::string& why) {
      note("--config {}, line {}: {}\n", path_, entry.line, why);
    };
    const std::string value = entry.values.front();
    if (without_meaning.contains(entry.name)) {
      if (truth_of(value) != false && value != "0" && value != "None")
        tell(fmt::format("{} means nothing here", entry.given));
      return {};
    }
    if (const auto found = fixed_values.find(entry.name); found != fixed_values.end()) {
      const auto& [number, why] = found->second;
      if (YAML::Node(only_value(entry)).as<double>(-1) == number) return {};
      throw wrong(entry.line, fmt::format("{} {}: {}: leave it out", entry.given, value, why));
    }
    if (const auto found = always_true.find(entry.name); found != always_true.end()) {
      if (truth_of(only_value(entry)) == true) return {};
      throw wrong(entry.line, fmt::format("{} {}: {}", entry.given, value, found->second));
    }
    if (entry.name == "lr-schedule.arguments") {
      if (entry.values.size() > 1)
        tell("of the arguments the first is taken; the rate falls to 0 at the last step");
      return {{"learning-rate", entry.given, {value}, entry.line}};
    }
    if (entry.name == "lr-schedule.warmup-init") {
      tell(fmt::format("the warm-up begins at 0, not at {}", value));
      return {};
    }
    if (entry.name == "optimizer-config.betas") {
      if (entry.values.size() != 2) throw wrong(entry.line, "betas are two numbers");
      return {{"beta1", entry.given, {value}, entry.line},
              {"beta2", entry.given, {entry.values[1]}, entry.line}};
    }
    if (const auto found = options_by_key.find(entry.name); found != options_by_key.end())
      entry.name = found->second;
    if (const auto found = schedules_by_name.find(value);
        entry.name == "lr-schedule" && found != schedules_by_name.end())
      entry.values = {found->second};
    return {std::move(entry)};
  }

  std::string path_;
  std::vector<Entry> entries_;
  std::set<std::string> names_;
  std::size_t seen_ = 0;
};

// `filled`: the options that entries before gave.
void give(CLI::App& verb, const ConfigFile& file, const Entry& entry, std::set<std::string>& filled) {
  auto* option = verb.get_option_no_throw("--" + entry.name);
  if (option == nullptr || entry.name == "help") {
    throw file.wrong(entry.line, fmt::format("there is no option \"{}\"; tandem {} --help lists them",
                                             entry.given, verb.get_name()));
  }
  const bool again = !filled.insert(entry.name).second;
  if (again && entry.name != "learning-rate")  // a schedule has one of its own
    throw file.wrong(entry.line,
                     fmt::format("{} is given twice, by another name too: give one", entry.given));
  if (!option->empty()) return;  // the command line's, or the schedule's
  try {
    if (option->get_expected_min() == 0) {
      // However YAML spells them; else as it is: of =auto and the like.
      const std::string& value = file.only_value(entry);
      const auto truth = truth_of(value);
      if (truth == false) return;
      option->add_result(option->get_flag_value(entry.name, truth ? "true" : value));
    } else {
      for (const auto& value : entry.values) option->add_result(value);
    }
    option->run_callback();
  } catch (const CLI::ParseError& error) {
    throw file.wrong(entry.line, error.what());
  }
}

}  // namespace

void add_config_flag(CLI::App& verb) {
  verb.add_option_function<std::string>(
      "-c,--config",
      [&verb](const std::string& path) {
        const auto* optimizer = verb.get_option_no_throw("--optimizer");
        const bool chosen = optimizer != nullptr && !optimizer->empty();
        ConfigFile file(path);
        std::set<std::string> filled;
        for (const auto& entry : file.read(chosen ? optimizer->results().back() : ""))
          give(verb, file, entry, filled);
      },
      "A YAML file of options, as mlx_lm.lora has them too; those of the command line come first");
}

std::string config_text(const CLI::App& verb) {
  YAML::Emitter given;
  std::string others;
  given << YAML::BeginMap;
  for (const auto* option : verb.get_options()) {
    if (option->get_lnames().empty()) continue;
    const auto& name = option->get_lnames().front();
    if (name == "help" || name == "config" || name == "train") continue;
    if (option->empty()) {
      if (!option->get_default_str().empty())
        others += fmt::format("# {}: {}\n", name, option->get_default_str());
      continue;
    }
    const auto values = option->reduced_results();
    given << YAML::Key << name << YAML::Value;
    if (values.size() == 1) {
      given << values.front();
    } else {
      given << YAML::Flow << values;
    }
  }
  given << YAML::EndMap;
  return fmt::format("{}\n\n# Not given:\n{}", given.c_str(), others);
}

}  // namespace tandem::cli
