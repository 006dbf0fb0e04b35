#include "cli/help.h"

namespace tandem::cli {
namespace {

class HelpFormatter : public CLI::Formatter {
 public:
  // "INT:INT in [1 - 64]=8" is "INT=8" here, "TEXT:{tp,pp}" "{tp,pp}".
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0) return "";
    std::string type = option->get_type_name();
    if (const auto colon = type.find(':'); colon != std::string::npos)
      type = type[colon + 1] == '{' ? type.substr(colon + 1) : type.substr(0, colon);
    std::string text = " " + type;
    if (!option->get_default_str().empty()) text += "=" + option->get_default_str();
    if (option->get_expected_max() == CLI::detail::expected_max_vector_size) text += " ...";
    if (option->get_required()) text += " REQUIRED";
    return text;
  }
};

}  // namespace

std::shared_ptr<CLI::Formatter> help_formatter() {
  auto formatter = std::make_shared<HelpFormatter>();
  formatter->label("SUBCOMMAND", "VERB");
  return formatter;
}

}  // namespace tandem::cli
