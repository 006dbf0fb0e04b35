#include "cli/config_file.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "cli/terminal.h"

namespace tandem::cli {
namespace {

struct Entry {
  std::string name;  // of nested mappings "outer.inner"
  std::vector<std::string> values;
  int line;
};

// What mlx_lm.lora calls otherwise, or what is part of a mapping there.
const std::map<std::string, std::string, std::less<>> options_by_key{
    {"model", "MODEL"},
    {"fine-tune-type", "method"},
    {"lora-layers", "num-layers"},
    {"lora-parameters.rank", "lora-rank"},
    {"lora-parameters.scale", "lora-scale"},
    {"lora-parameters.keys", "lora-keys"},
    {"lr-schedule.name", "lr-schedule"},
    {"lr-schedule.warmup", "warmup"},
    {"optimizer-config.weight-decay", "weight-decay"},
    {"optimizer-config.momentum", "beta1"}};
const std::map<std::string, std::string, std::less<>> schedules_by_name{{"cosine_decay", "cosine"},
                                                                        {"linear_schedule", "linear"}};
// Of mlx_lm.lora, where nothing here answers to it.
const std::set<std::string, std::less<>> without_meaning{"train",     "config",       "clear-cache-threshold",
                                                         "report-to", "project-name", "trust-remote-code"};

class ConfigFile {
 public:
  explicit ConfigFile(std::string path) : path_(std::move(path)) {}

  // As the options of the command line are called, those of another optimizer left out.
  std::vector<Entry> read() {
    try {
      const YAML::Node root = YAML::LoadFile(path_);
      if (!root.IsMap()) throw InputError(fmt::format("--config {}: it is no mapping of options", path_));
      flatten(root, "");
    } catch (const YAML::BadFile&) {
      throw InputError(fmt::format("--config {}: it cannot be read", path_));
    } catch (const YAML::Exception& error) {
      throw wrong(error.mark.line + 1, error.msg);
    }
    const auto chosen = std::find_if(entries_.begin(), entries_.end(),
                                     [](const Entry& entry) { return entry.name == "optimizer"; });
    const std::string optimizer = chosen == entries_.end() ? "adamw" : chosen->values.front();
    std::vector<Entry> options;
    for (auto& entry : entries_) {
      const std::string_view group = "optimizer-config.";
      if (entry.name.starts_with(group)) {
        const std::string own = std::string(group) + optimizer + ".";
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

  InputError wrong(int line, const std::string& why) const {
    return InputError(fmt::format("--config {}, line {}: {}", path_, line, why));
  }

 private:
  void flatten(const YAML::Node& map, const std::string& before) {
    constexpr std::size_t most = 1000;  // aliases may repeat themselves without end
    for (const auto& pair : map) {
      auto name = before + pair.first.as<std::string>();
      std::replace(name.begin(), name.end(), '_', '-');
      const int line = pair.first.Mark().line + 1;
      if (entries_.size() > most) throw wrong(line, "it has too many options");
      const YAML::Node& value = pair.second;
      if (value.IsMap()) flatten(value, name + ".");
      if (value.IsScalar()) entries_.push_back({name, {value.Scalar()}, line});
      if (!value.IsSequence()) continue;
      Entry entry{name, {}, line};
      for (const auto& one : value) entry.values.push_back(one.as<std::string>());
      if (!entry.values.empty()) entries_.push_back(std::move(entry));
    }
  }

  std::vector<Entry> options_of(Entry entry) const {
    const std::string& value = entry.values.front();
    if (without_meaning.contains(entry.name)) return {};
    if (entry.name == "lora-parameters.dropout") {
      if (YAML::Node(value).as<double>(-1) == 0) return {};
      throw wrong(entry.line, fmt::format("dropout {}: there is none here: give 0, or leave it out", value));
    }
    if (entry.name == "lr-schedule.arguments") {
      if (entry.values.size() > 1)
        note(
            "--config {}, line {}: of the arguments the first is taken; the rate falls to 0 at the last "
            "step\n",
            path_, entry.line);
      return {{"learning-rate", {value}, entry.line}};
    }
    if (entry.name == "lr-schedule.warmup-init") {
      note("--config {}, line {}: the warm-up begins at 0, not at {}\n", path_, entry.line, value);
      return {};
    }
    if (entry.name == "optimizer-config.betas") {
      if (entry.values.size() != 2) throw wrong(entry.line, "betas are two numbers");
      return {{"beta1", {value}, entry.line}, {"beta2", {entry.values[1]}, entry.line}};
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
};

// "true" and "false", however YAML spells them; else as it is: of =auto and the like.
std::string as_flag(const std::string& value) {
  bool given = false;
  if (!YAML::convert<bool>::decode(YAML::Node(value), given)) return value;
  return given ? "true" : "false";
}

void give(CLI::App& verb, const ConfigFile& file, const Entry& entry) {
  auto* option = verb.get_option_no_throw(entry.name == "MODEL" ? entry.name : "--" + entry.name);
  if (option == nullptr || entry.name == "help") {
    throw file.wrong(entry.line, fmt::format("there is no option \"{}\"; tandem {} --help lists them",
                                             entry.name, verb.get_name()));
  }
  if (!option->empty()) return;  // the command line's
  const bool flag = option->get_expected_min() == 0;
  const std::string first = flag ? as_flag(entry.values.front()) : entry.values.front();
  if (flag && first == "false") return;
  try {
    if (flag) {
      option->add_result(option->get_flag_value(entry.name, first));
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
        ConfigFile file(path);
        for (const auto& entry : file.read()) give(verb, file, entry);
      },
      "A YAML file of options, as mlx_lm.lora has them too; those of the command line come first");
}

std::string config_text(const CLI::App& verb) {
  YAML::Emitter given;
  std::string others;
  given << YAML::BeginMap;
  for (const auto* option : verb.get_options()) {
    const auto& names = option->get_lnames();
    const std::string name = names.empty() ? "model" : names.front();
    if (name == "help" || name == "config") continue;
    if (option->empty()) {
      if (!option->get_default_str().empty())
        others += fmt::format("# {}: {}\n", name, option->get_default_str());
      continue;
    }
    const auto& values = option->results();
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
