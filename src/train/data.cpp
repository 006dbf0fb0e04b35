#include "train/data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <numeric>
#include <random>

#include "base/error.h"
#include "base/json_lines.h"

namespace tandem::train {
namespace {

using nlohmann::ordered_json;

const std::string& string_at(const ordered_json& line, const char* key) {
  if (!line[key].is_string()) throw InputError(fmt::format("\"{}\" is no string", key));
  return line[key].get_ref<const std::string&>();
}

}  // namespace

std::vector<int> TextReader::render(const ordered_json& messages, const ordered_json& tools,
                                    bool prompts_answer) const {
  if (!chat_) throw InputError("it has messages, but the model has no chat template: give \"text\"");
  ordered_json variables = ordered_json::object();
  if (!tools.is_null()) variables["tools"] = tools;
  return tokenizer().encode(chat_->render(messages, prompts_answer, variables), /*add_special=*/false);
}

Sequence TextReader::of_messages(const ordered_json& messages, const ordered_json& tools) const {
  if (!messages.is_array() || messages.empty()) throw InputError("\"messages\" is no list of messages");
  Sequence sequence{render(messages, tools, false), 1};
  if (!options_.mask_prompt) return sequence;
  ordered_json before = messages;
  const bool answers = before.back().value("role", "") == "assistant";
  before.erase(before.size() - 1);
  const int prompt = before.empty() ? 0 : static_cast<int>(render(before, tools, answers).size());
  sequence.loss_from = std::max(1, prompt);
  return sequence;
}

const text::Tokenizer& TextReader::tokenizer() const {
  if (!tokenizer_) throw InputError("the model has no tokenizer.json: give \"ids\"");
  return *tokenizer_;
}

Sequence TextReader::of_text(const std::string& text) const {
  Sequence sequence{tokenizer().encode(text, /*add_special=*/true), 1};
  const auto& ends = options_.end_ids;
  const bool ended =
      !sequence.ids.empty() && std::find(ends.begin(), ends.end(), sequence.ids.back()) != ends.end();
  if (!ends.empty() && !ended) sequence.ids.push_back(ends.front());
  return sequence;
}

Sequence TextReader::of_ids(const ordered_json& ids) const { return {ids.get<std::vector<int>>(), 1}; }

Sequence TextReader::sequence_of(const ordered_json& line) const {
  if (!line.is_object()) throw InputError("it is no JSON object");
  if (line.contains("messages"))
    return of_messages(line["messages"], line.contains("tools") ? line["tools"] : ordered_json());
  if (line.contains("prompt") && line.contains("completion")) {
    return of_messages({{{"role", "user"}, {"content", string_at(line, "prompt")}},
                        {{"role", "assistant"}, {"content", string_at(line, "completion")}}},
                       ordered_json());
  }
  if (line.contains("ids")) return of_ids(line["ids"]);
  if (!line.contains("text"))
    throw InputError(
        "it has neither \"messages\", nor \"prompt\" and \"completion\", nor \"text\", nor \"ids\"");
  return of_text(string_at(line, "text"));
}

void for_each_line(const std::filesystem::path& file, const std::function<void(const ordered_json&)>& take) {
  std::ifstream lines(file);
  if (!lines) throw InputError(fmt::format("{} cannot be read: {}", file.string(), std::strerror(errno)));
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    const auto wrong = [&](const std::string& why) {
      return InputError(fmt::format("{}, line {}: {}", file.string(), number, why));
    };
    try {
      take(ordered_json::parse(line));
    } catch (const nlohmann::json::exception& error) {
      throw wrong(json_fault(error));
    } catch (const InputError& error) {
      throw wrong(error.what());
    }
  }
}

std::vector<std::string> spoken_texts(const ordered_json& line) {
  if (!line.is_object()) throw InputError("it is no JSON object");
  std::vector<std::string> texts;
  for (const char* key : {"prompt", "completion", "text"})
    if (line.contains(key)) texts.push_back(string_at(line, key));
  if (line.contains("messages")) {
    for (const auto& message : line["messages"])
      if (message.is_object() && message.contains("content") && message["content"].is_string())
        texts.push_back(message["content"].get<std::string>());  // null where it calls a tool
  }
  return texts;
}

std::vector<Sequence> TextReader::read(const std::filesystem::path& file) {
  std::vector<Sequence> sequences;
  for_each_line(file, [&](const ordered_json& line) {
    sequences.push_back(sequence_of(line));
    auto& ids = sequences.back().ids;
    for (const int id : ids) {
      if (id < 0 || id >= vocabulary_)
        throw InputError(fmt::format("id {} is not below the model's vocabulary of {}", id, vocabulary_));
    }
    if (static_cast<int>(ids.size()) > options_.longest) {
      ids.resize(static_cast<std::size_t>(options_.longest));
      ++cut_;
    }
    if (scored_tokens({sequences.back()}) == 0) sequences.pop_back();
  });
  if (sequences.empty()) throw InputError(fmt::format("{} has no text to train on", file.string()));
  return sequences;
}

Batches::Batches(std::vector<Sequence> sequences, int size, std::uint64_t seed) : seed_(seed) {
  std::stable_sort(sequences.begin(), sequences.end(),
                   [](const auto& a, const auto& b) { return a.ids.size() < b.ids.size(); });
  const std::size_t count = sequences.size(), each = std::min(count, static_cast<std::size_t>(size));
  for (std::size_t first = 0; first < count; first += each) {
    const auto at = [&](std::size_t i) { return sequences.begin() + static_cast<std::ptrdiff_t>(i); };
    batches_.emplace_back(at(first), at(std::min(count, first + each)));
  }
  shuffle();
}

// By Fisher and Yates, with a generator that every standard library has alike.
void Batches::shuffle() {
  order_.resize(batches_.size());
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  std::mt19937_64 random(seed_ * 0x9e3779b97f4a7c15u + epoch_++);
  for (std::size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random() % i]);
  at_ = 0;
}

void Batches::skip(std::int64_t count) {
  for (; count > 0; --count) next();
}

const std::vector<Sequence>& Batches::next() {
  if (at_ == order_.size()) shuffle();
  return batches_[order_[at_++]];
}

}  // namespace tandem::train
