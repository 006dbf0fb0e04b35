// Training texts as mlx-lm has them: DIR/train.jsonl, valid.jsonl and test.jsonl, one JSON object a line with
// "messages" (and "tools"), "prompt" and "completion", or "text"; and, besides, "ids": token ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "train/loss.h"

namespace tandem::train {

// Calls `take` with the JSON of each line that is not empty. InputError names the file and the line where
// that is no JSON, or `take` throws one; with `bad` it is given that, and the next line follows.
void for_each_line(const std::filesystem::path& file,
                   const std::function<void(const nlohmann::ordered_json&)>& take,
                   const std::function<void(const InputError&)>& bad = {});

// What people and models say in a line, and "text". InputError where that is none.
std::vector<std::string> spoken_texts(const nlohmann::ordered_json& line);

struct TextOptions {
  std::vector<int> end_ids;  // a "text" ends with the first of these
  bool mask_prompt = false;  // only the last message or the completion counts
  int longest = 2048;        // tokens; what is longer is cut
  bool skip_bad = false;     // a line that is no text is left out
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
  // Of all files so far: how many texts were cut, how many had no token that counts and were left out, and
  // what was wrong with the lines that were skipped.
  int cut() const { return cut_; }
  int without_loss() const { return without_loss_; }
  const std::vector<std::string>& skipped() const { return skipped_; }

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
  int cut_ = 0, without_loss_ = 0;
  std::vector<std::string> skipped_;
};

// Which of the sequences are those of rank `rank`: one after the other is the rank's that has the fewest
// tokens so far for its share. The ranks' sequences are all of them, each once.
std::vector<Sequence> part_of(const std::vector<Sequence>& sequences, const std::vector<double>& shares,
                              int rank);

// Batches of `size` sequences, one of an epoch perhaps smaller, for ever: each epoch has every sequence once,
// in an order that depends on the seed and the epoch alone. Some batches' sequences at a time are sorted by
// length, so that those of a batch are alike, though not the same in every epoch.
class Batches {
 public:
  Batches(std::vector<Sequence> sequences, int size, std::uint64_t seed);

  // Valid until the next call.
  const std::vector<Sequence>& next();
  // As if next() had been called so often.
  void skip(std::int64_t count);
  std::size_t size() const { return size_; }  // texts of a batch
  int in_an_epoch() const;
  int most_rows() const;    // tokens to predict from that a batch may have
  int longest_row() const;  // those of the longest text

 private:
  void begin_epoch();

  std::vector<Sequence> sequences_, batch_;
  std::size_t size_;
  std::vector<std::vector<std::size_t>> batches_;  // of the epoch, in sequences_
  std::size_t at_ = 0;
  std::uint64_t seed_, epoch_ = 0;
};

}  // namespace tandem::train
