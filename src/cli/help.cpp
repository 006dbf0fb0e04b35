#include "cli/help.h"

#include <algorithm>

#include "cli/terminal.h"

namespace tandem::cli {
namespace {

// Lines of at most `width` bytes, cut between words.
std::string wrapped(const std::string& text, std::size_t width) {
  std::string lines;
  std::size_t line = 0;  // where it begins
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(' ', at), text.size());
    if (lines.size() > line && lines.size() - line + 1 + end - at > width) {
      lines += '\n';
      line = lines.size();
    } else if (lines.size() > line) {
      lines += ' ';
    }
    lines += text.substr(at, end - at);
    at = end + 1;
  }
  return lines;
}

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

  // Beside the names, on a terminal in what columns they leave.
  std::string make_option_desc(const CLI::Option* option) const override {
    constexpr std::size_t narrowest = 30;
    const std::string text = CLI::Formatter::make_option_desc(option);
    if (!stdout_is_terminal()) return text;
    const std::size_t columns = stdout_size().columns;
    return wrapped(text, std::max(narrowest, columns - std::min(columns, get_column_width() + 1)));
  }
};

}  // namespace

std::shared_ptr<CLI::Formatter> help_formatter() {
  auto formatter = std::make_shared<HelpFormatter>();
  formatter->label("SUBCOMMAND", "VERB");
  return formatter;
}

}  // namespace tandem::cli
