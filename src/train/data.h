// Training texts as mlx-lm has them: DIR/train.jsonl, valid.jsonl and test.jsonl, one JSON object a line with
// "messages" (and "tools"), "prompt" and "completion", or "text"; and, besides, "ids": token ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "train/loss.h"

namespace tandem::train {

// Calls `take` with the JSON of each line that is not empty. InputError names the file and the line where
// that is no JSON, or `take` throws one.
void for_each_line(const std::filesystem::path& file,
                   const std::function<void(const nlohmann::ordered_json&)>& take);

// What people and models say in a line, and "text".
std::vector<std::string> spoken_texts(const nlohmann::ordered_json& line);

struct TextOptions {
  std::vector<int> end_ids;  // a "text" ends with the first of these
  bool mask_prompt = false;  // only the last message or the completion counts
  int longest = 2048;        // tokens; what is longer is cut
};

class TextReader {
 public:
  // Without a tokenizer there are only lines of ids, without a chat template none of messages. Both outlive
  // this. Ids are below `vocabulary`.
  TextReader(const std::optional<text::Tokenizer>& tokenizer, const std::optional<text::ChatTemplate>& chat,
             int vocabulary, TextOptions options)
      : tokenizer_(tokenizer), chat_(chat), vocabulary_(vocabulary), options_(std::move(options)) {}

  // InputError names the file, the line and what is wrong with it, and where no line is left.
  std::vector<Sequence> read(const std::filesystem::path& file);
  // How many were cut.
  int cut() const { return cut_; }

 private:
  Sequence sequence_of(const nlohmann::ordered_json& line) const;
  Sequence of_text(const std::string& text) const;
  Sequence of_ids(const nlohmann::ordered_json& ids) const;
  const text::Tokenizer& tokenizer() const;
  Sequence of_messages(const nlohmann::ordered_json& messages, const nlohmann::ordered_json& tools) const;
  std::vector<int> render(const nlohmann::ordered_json& messages, const nlohmann::ordered_json& tools,
                          bool prompts_answer) const;

  const std::optional<text::Tokenizer>& tokenizer_;
  const std::optional<text::ChatTemplate>& chat_;
  int vocabulary_;
  TextOptions options_;
  int cut_ = 0;
};

// Batches of `size` sequences of like length, the last perhaps smaller, for ever: each epoch has every batch
// once, in an order that depends on the seed and the epoch alone.
class Batches {
 public:
  Batches(std::vector<Sequence> sequences, int size, std::uint64_t seed);

  const std::vector<Sequence>& next();
  // As if next() had been called so often.
  void skip(std::int64_t count);
  int in_an_epoch() const { return static_cast<int>(batches_.size()); }

 private:
  void shuffle();

  std::vector<std::vector<Sequence>> batches_;
  std::vector<std::size_t> order_;
  std::size_t at_ = 0;
  std::uint64_t seed_, epoch_ = 0;
};

}  // namespace tandem::train
