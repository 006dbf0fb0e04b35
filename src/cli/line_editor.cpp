#include "cli/line_editor.h"

#include <histedit.h>

#include <clocale>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "cli/environment.h"
#include "cli/terminal.h"

namespace tandem::cli {
namespace {

constexpr int history_lines = 1000;

std::string without_newline(std::string line) {
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  return line;
}

}  // namespace

struct LineEditor::Impl {
  EditLine* editor = nullptr;
  History* history = nullptr;
  HistEvent event{};
  std::string prompt;
  std::filesystem::path file;

  static const char* show_prompt(EditLine* editor) {
    void* impl = nullptr;
    el_get(editor, EL_CLIENTDATA, &impl);
    return static_cast<Impl*>(impl)->prompt.c_str();
  }
};

LineEditor::LineEditor() : impl_(std::make_unique<Impl>()) {
  if (!stdin_is_terminal()) return;
  // Characters of more than one byte need a locale that has them.
  if (std::strcmp(std::setlocale(LC_CTYPE, nullptr), "C") == 0) std::setlocale(LC_CTYPE, "C.UTF-8");
  impl_->editor = el_init("tandem", stdin, stderr, stderr);
  impl_->history = history_init();
  history(impl_->history, &impl_->event, H_SETSIZE, history_lines);
  history(impl_->history, &impl_->event, H_SETUNIQUE, 1);
  el_set(impl_->editor, EL_CLIENTDATA, impl_.get());
  el_set(impl_->editor, EL_PROMPT, &Impl::show_prompt);
  el_set(impl_->editor, EL_EDITOR, "emacs");
  // While a line is edited Ctrl-C is a key like others: it drops the line.
  el_set(impl_->editor, EL_SETTY, "-d", "-isig", nullptr);
  el_set(impl_->editor, EL_BIND, "^C", "em-kill-line", nullptr);
  el_set(impl_->editor, EL_HIST, history, impl_->history);
  el_source(impl_->editor, nullptr);  // the user's ~/.editrc
  impl_->file = state_folder() / "history";
  history(impl_->history, &impl_->event, H_LOAD, impl_->file.c_str());
}

LineEditor::~LineEditor() {
  if (impl_->history) {
    std::error_code error;
    std::filesystem::create_directories(impl_->file.parent_path(), error);
    history(impl_->history, &impl_->event, H_SAVE, impl_->file.c_str());
    history_end(impl_->history);
  }
  if (impl_->editor) el_end(impl_->editor);
}

std::optional<std::string> LineEditor::read(const std::string& prompt) {
  if (!impl_->editor) {
    std::string line;
    if (!std::getline(std::cin, line)) return std::nullopt;
    return without_newline(line);
  }
  impl_->prompt = prompt;
  int length = 0;
  const char* line = el_gets(impl_->editor, &length);
  if (!line || length <= 0) {
    std::fputc('\n', stderr);
    return std::nullopt;
  }
  const std::string text = without_newline(std::string(line, static_cast<std::size_t>(length)));
  if (!text.empty()) history(impl_->history, &impl_->event, H_ENTER, line);
  return text;
}

}  // namespace tandem::cli
