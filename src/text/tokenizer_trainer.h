// A tokenizer of its own for a model from scratch: byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909),
// by the Hugging Face `tokenizers` crate (rust/).
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace tandem::text {

class TokenizerTrainer {
 public:
  // `vocabulary`: tokens in the end, those added included, where the texts have as many.
  explicit TokenizerTrainer(int vocabulary);
  ~TokenizerTrainer();
  TokenizerTrainer(const TokenizerTrainer&) = delete;
  TokenizerTrainer& operator=(const TokenizerTrainer&) = delete;

  // A token that no text is cut into otherwise, with the next id from 0 on. A special one is left out of
  // answers.
  void add_token(std::string_view token, bool special);
  // Kept until finish(). InputError where it is not UTF-8.
  void add_text(std::string_view text);
  // The tokenizer.json: each digit a token, as DeepSeek's.
  std::string finish();

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
};

}  // namespace tandem::text
