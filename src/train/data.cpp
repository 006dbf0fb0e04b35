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
  for (const auto& message : messages) check_role(message);
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

void for_each_line(const std::filesystem::path& file, const std::function<void(const ordered_json&)>& take,
                   const std::function<void(const InputError&)>& bad) {
  std::ifstream lines(file);
  if (!lines) throw InputError(fmt::format("{} cannot be read: {}", file.string(), std::strerror(errno)));
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    const auto wrong = [&](const std::string& why) {
      const InputError error(fmt::format("{}, line {}: {}", file.string(), number, why));
      if (!bad) throw error;
      bad(error);
    };
    try {
      take(ordered_json::parse(line));
    } catch (const nlohmann::json::exception& error) {
      wrong(json_fault(error));
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
    for (const auto& message : line["messages"])
      if (message.is_object() && message.contains("content") && message["content"].is_string())
        texts.push_back(message["content"].get<std::string>());  // null where it calls a tool
  }
  return texts;
}

std::vector<Sequence> TextReader::read(const std::filesystem::path& file) {
  std::vector<Sequence> sequences;
  const auto take = [&](const ordered_json& line) {
    Sequence sequence = sequence_of(line);
    auto& ids = sequence.ids;
    for (const int id : ids) {
      if (id < 0 || id >= vocabulary_)
        throw InputError(fmt::format("id {} is not below the model's vocabulary of {}", id, vocabulary_));
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
