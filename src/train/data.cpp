#include "train/data.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <numeric>
#include <random>

#include "base/error.h"
#include "base/json_lines.h"
#include "base/limits.h"

namespace tandem::train {
namespace {

using nlohmann::ordered_json;

const std::string& string_at(const ordered_json& line, const char* key) {
  if (!line[key].is_string()) throw InputError(fmt::format("\"{}\" is no string", key));
  return line[key].get_ref<const std::string&>();
}

// A chat template would leave a message of another one out, or say it as somebody else.
void check_role(const ordered_json& message) {
  constexpr std::array roles{"system", "developer", "user", "assistant", "tool"};
  const auto role = message.is_object() ? message.value("role", ordered_json()) : ordered_json();
  if (!role.is_string()) throw InputError("a message has no \"role\"");
  if (std::find(roles.begin(), roles.end(), role.get<std::string>()) == roles.end())
    throw InputError(fmt::format("role {} is none of {}", role.dump(), fmt::join(roles, ", ")));
}

// What a message says, as text: OpenAI's lists of parts are put together. Null where it calls a tool.
ordered_json content_of(const ordered_json& message) {
  const auto content = message.value("content", ordered_json());
  if (content.is_string()) return content;
  if (content.is_null() && message.contains("tool_calls")) return content;
  std::string text;
  if (!content.is_array())
    throw InputError(
        fmt::format("a message of role {} has no text as its \"content\"", message["role"].dump()));
  for (const auto& part : content) {
    const bool is_text = part.is_object() && part.value("type", ordered_json()) == "text" &&
                         part.contains("text") && part["text"].is_string();
    if (!is_text)
      throw InputError(fmt::format("a part of a message's \"content\" is no text: {}", part.dump()));
    text += part["text"].get_ref<const std::string&>();
  }
  return text;
}

// With contents as content_of() has them.
ordered_json checked(const ordered_json& messages) {
  if (!messages.is_array() || messages.empty()) throw InputError("\"messages\" is no list of messages");
  ordered_json all = messages;
  for (auto& message : all) {
    check_role(message);
    message["content"] = content_of(message);
  }
  return all;
}

void check_tools(const ordered_json& tools) {
  const auto is_object = [](const ordered_json& tool) { return tool.is_object(); };
  if (tools.is_null() || (tools.is_array() && std::all_of(tools.begin(), tools.end(), is_object))) return;
  throw InputError("\"tools\" is no list of tools");
}

// Without the number of the line, which is the only one.
std::string fault_of_line(const nlohmann::json::exception& error) {
  std::string fault = json_fault(error);
  const std::string_view line = "line 1, ";
  if (const auto at = fault.find(line); at != fault.npos) fault.erase(at, line.size());
  return fault;
}

// Without its end. False at the file's end; InputError where it cannot be read, or is too long.
bool next_line(std::istream& file, std::string& line) {
  line.clear();
  char part[1 << 16];
  while (true) {
    file.getline(part, sizeof part);
    line.append(part, static_cast<std::size_t>(file.gcount() - (file.good() ? 1 : 0)));  // the end counts too
    if (line.size() > limits::small_file_bytes)
      throw InputError(
          fmt::format("it is longer than {} bytes: cut it into several texts", limits::small_file_bytes));
    if (file.bad()) throw InputError("it cannot be read");
    if (file.eof()) return !line.empty();
    if (!file.fail()) return true;
    file.clear();  // the line is longer than the part
  }
}

}  // namespace

std::vector<int> TextReader::render(const ordered_json& messages, const ordered_json& tools,
                                    bool prompts_answer) const {
  if (!chat_) throw InputError("it has messages, but the model has no chat template: give \"text\"");
  ordered_json variables = ordered_json::object();
  if (!tools.is_null()) variables["tools"] = tools;
  return tokenizer().encode(chat_->render(messages, prompts_answer, variables), /*add_special=*/false);
}

Sequence TextReader::of_messages(const ordered_json& given, const ordered_json& tools) const {
  const ordered_json messages = checked(given);
  check_tools(tools);
  Sequence sequence{render(messages, tools, false), 1};
  if (!options_.mask_prompt) return sequence;
  ordered_json before = messages;
  if (before.back()["role"] != "assistant")
    throw InputError("--mask-prompt: its last message is not the assistant's: no answer is left to learn");
  before.erase(before.size() - 1);
  const int prompt = before.empty() ? 0 : static_cast<int>(render(before, tools, true).size());
  sequence.loss_from = std::max(1, prompt);
  return sequence;
}

const text::Tokenizer& TextReader::tokenizer() const {
  if (!tokenizer_) throw InputError("the model has no tokenizer.json: give \"ids\"");
  return *tokenizer_;
}

Sequence TextReader::of_text(const std::string& text) const {
  if (options_.mask_prompt)
    throw InputError("--mask-prompt: \"text\" has no prompt to mask: give \"messages\", or leave it out");
  Sequence sequence{tokenizer().encode(text, /*add_special=*/true), 1};
  const auto& ends = options_.end_ids;
  const bool ended =
      !sequence.ids.empty() && std::find(ends.begin(), ends.end(), sequence.ids.back()) != ends.end();
  if (!ends.empty() && !ended) sequence.ids.push_back(ends.front());
  return sequence;
}

Sequence TextReader::of_ids(const ordered_json& ids) const {
  Sequence sequence{{}, 1};
  if (!ids.is_array()) throw InputError("\"ids\" is no list of token ids");
  for (const auto& id : ids) {
    if (!id.is_number_integer()) throw InputError(fmt::format("\"ids\": {} is no token id", id.dump()));
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= static_cast<std::uint64_t>(vocabulary_))
      throw InputError(
          fmt::format("id {} is not below the model's vocabulary of {}", id.dump(), vocabulary_));
    sequence.ids.push_back(id.get<int>());
  }
  return sequence;
}

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

void for_each_line(const std::filesystem::path& file, const std::function<void(const ordered_json&)>& take,
                   const std::function<void(const InputError&)>& bad) {
  std::ifstream lines(file);
  if (!lines) throw InputError(fmt::format("{} cannot be read: {}", file.string(), std::strerror(errno)));
  std::string line;
  for (int number = 1;; ++number) {
    const auto named = [&](const std::string& why) {
      return InputError(fmt::format("{}, line {}: {}", file.string(), number, why));
    };
    const auto wrong = [&](const std::string& why) {
      if (!bad) throw named(why);
      bad(named(why));
    };
    try {
      if (!next_line(lines, line)) break;
    } catch (const InputError& error) {
      throw named(error.what());  // what follows it cannot be read either
    }
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    try {
      if (line.find('\0') != line.npos) throw InputError("it has a zero byte");
      take(ordered_json::parse(line));
    } catch (const nlohmann::json::exception& error) {
      wrong(fault_of_line(error));
    } catch (const InputError& error) {
      wrong(error.what());
    }
  }
}

std::vector<std::string> spoken_texts(const ordered_json& line) {
  if (!line.is_object()) throw InputError("it is no JSON object");
  std::vector<std::string> texts;
  for (const char* key : {"prompt", "completion", "text"})
    if (line.contains(key)) texts.push_back(string_at(line, key));
  if (line.contains("messages")) {
    for (const auto& message : checked(line["messages"]))
      if (!message["content"].is_null()) texts.push_back(message["content"].get<std::string>());
  }
  return texts;
}

std::vector<Sequence> TextReader::read(const std::filesystem::path& file) {
  std::vector<Sequence> sequences;
  const auto take = [&](const ordered_json& line) {
    Sequence sequence = sequence_of(line);
    auto& ids = sequence.ids;
    for (const int id : ids) {
      if (id < 0 || id >= vocabulary_) {
        throw InputError(
            fmt::format("the tokenizer, or the model's eos_token_id, gives id {}, which is not below its "
                        "vocab_size of {}: "
                        "they do not belong together",
                        id, vocabulary_));
      }
    }
    if (static_cast<int>(ids.size()) > options_.longest) {
      ids.resize(static_cast<std::size_t>(options_.longest));
      ++cut_;
    }
    if (scored_tokens({sequence}) > 0) {
      sequences.push_back(std::move(sequence));
    } else {
      ++without_loss_;
    }
  };
  const auto skip = [&](const InputError& error) { skipped_.push_back(error.what()); };
  for_each_line(file, take, options_.skip_bad ? skip : std::function<void(const InputError&)>());
  if (sequences.empty()) throw InputError(fmt::format("{} has no text to train on", file.string()));
  return sequences;
}

namespace {

// By Fisher and Yates, with a generator that every standard library has alike.
template <typename T>
void shuffle(std::vector<T>& items, std::mt19937_64& random) {
  for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random() % i]);
}

}  // namespace

std::vector<Sequence> part_of(const std::vector<Sequence>& sequences, const std::vector<double>& shares,
                              int rank) {
  std::vector<double> tokens(shares.size());
  std::vector<Sequence> part;
  for (const auto& sequence : sequences) {
    std::size_t next = 0;
    for (std::size_t i = 1; i < shares.size(); ++i) {
      if (tokens[i] / shares[i] < tokens[next] / shares[next]) next = i;
    }
    tokens[next] += static_cast<double>(sequence.ids.size());
    if (next == static_cast<std::size_t>(rank)) part.push_back(sequence);
  }
  return part;
}

Batches::Batches(std::vector<Sequence> sequences, int size, std::uint64_t seed)
    : sequences_(std::move(sequences)),
      size_(std::min(sequences_.size(), static_cast<std::size_t>(size))),
      seed_(seed) {
  begin_epoch();
}

int Batches::in_an_epoch() const { return static_cast<int>((sequences_.size() + size_ - 1) / size_); }

int Batches::most_rows() const {
  std::vector<int> rows;
  for (const auto& one : sequences_) rows.push_back(one.rows());
  std::sort(rows.rbegin(), rows.rend());
  return std::accumulate(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(size_), 0);
}

int Batches::longest_row() const {
  int longest = 0;
  for (const auto& one : sequences_) longest = std::max(longest, one.rows());
  return longest;
}

void Batches::begin_epoch() {
  constexpr std::size_t sorted_batches = 32;
  std::mt19937_64 random(seed_ * 0x9e3779b97f4a7c15u + epoch_++);
  std::vector<std::size_t> order(sequences_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  shuffle(order, random);
  batches_.clear();
  for (std::size_t first = 0; first < order.size(); first += size_) {
    const auto at = [&](std::size_t i) {
      return order.begin() + static_cast<std::ptrdiff_t>(std::min(i, order.size()));
    };
    if (first % (sorted_batches * size_) == 0) {
      std::stable_sort(at(first), at(first + sorted_batches * size_), [&](std::size_t a, std::size_t b) {
        return sequences_[a].ids.size() < sequences_[b].ids.size();
      });
    }
    batches_.emplace_back(at(first), at(first + size_));
  }
  shuffle(batches_, random);
  at_ = 0;
}

void Batches::skip(std::int64_t count) {
  for (; count > 0; --count) next();
}

const std::vector<Sequence>& Batches::next() {
  if (at_ == batches_.size()) begin_epoch();
  batch_.clear();
  for (const std::size_t i : batches_[at_]) batch_.push_back(sequences_[i]);
  ++at_;
  return batch_;
}

}  // namespace tandem::train
