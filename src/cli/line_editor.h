// Lines from the terminal, with editing and a history kept in the state folder (libedit). Where stdin is no
// terminal, plain lines.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace tandem::cli {

class LineEditor {
 public:
  LineEditor();
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // The next line without its newline; nothing at the end of the input (Ctrl-D). Ctrl-C drops the line typed
  // so far and gives an empty one.
  std::optional<std::string> read(const std::string& prompt);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem::cli
