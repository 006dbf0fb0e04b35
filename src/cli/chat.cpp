#include "cli/chat.h"

#include <fmt/format.h>

#include "base/error.h"
#include "cli/answer.h"
#include "cli/interrupt.h"
#include "cli/line_editor.h"
#include "cli/terminal.h"

namespace tandem::cli {
namespace {

constexpr const char* help =
    "  /clear   forget what was said\n"
    "  /exit    leave (so does Ctrl-D)\n"
    "  Ctrl-C   stop an answer\n";

nlohmann::ordered_json first_messages(const ChatOptions& options) {
  auto messages = nlohmann::ordered_json::array();
  if (!options.system.empty()) messages.push_back({{"role", "system"}, {"content", options.system}});
  return messages;
}

void answer_line(cluster::Conductor& conductor, const server::ServedModel& model, const ChatOptions& options,
                 nlohmann::ordered_json& messages, const std::string& line) {
  messages.push_back({{"role", "user"}, {"content", line}});
  try {
    engine::GenerateRequest request{0, model.chat_prompt(messages), options.max_tokens, model.config.end_ids,
                                    options.sampling};
    const auto answer = print_answer(conductor, model.tokenizer, std::move(request));
    messages.push_back({{"role", "assistant"}, {"content", answer.text}});
  } catch (const InputError& error) {
    messages.erase(messages.size() - 1);
    note("tandem: {} (/clear forgets what was said)\n", error.what());
  }
}

}  // namespace

void chat(cluster::Conductor& conductor, const server::ServedModel& model, const ChatOptions& options) {
  auto messages = first_messages(options);
  // Ctrl-C stops answers (cli/answer.cpp) and drops lines (cli/line_editor.cpp), never the program.
  const InterruptGuard guard;
  LineEditor editor;
  note("{}\n", dim("Type a message; /help tells more, Ctrl-D leaves."));
  const auto read = [&] {
    InterruptGuard::forget();  // what comes from Enter on is meant for the answer
    return editor.read("> ");
  };
  while (const auto line = read()) {
    if (line->empty()) continue;
    if (*line == "/exit" || *line == "/bye") break;
    if (*line == "/clear") {
      messages = first_messages(options);
    } else if (line->front() == '/') {
      note("{}", help);
    } else {
      answer_line(conductor, model, options, messages, *line);
    }
  }
}

}  // namespace tandem::cli
