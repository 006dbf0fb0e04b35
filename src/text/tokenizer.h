// A Hugging Face tokenizer.json, by the Hugging Face `tokenizers` crate (rust/).
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tandem::text {

class Tokenizer {
 public:
  // Reads `folder`/tokenizer.json. InputError names the file and what is wrong with it.
  explicit Tokenizer(const std::filesystem::path& folder);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // Token ids of UTF-8 text; with `add_special`, what the tokenizer's post-processor adds (a leading BOS,
  // say). InputError where `text` is no UTF-8.
  std::vector<int> encode(std::string_view text, bool add_special) const;
  // Ids that are no token of it (a model's vocabulary may be padded) give no text.
  std::string decode(const std::vector<int>& ids, bool skip_special) const;

  std::optional<int> id_of(std::string_view token) const;
  // Added tokens included.
  int vocab_size() const;

 private:
  friend class TokenStream;
  struct Handle;
  std::unique_ptr<Handle> handle_;
};

// Text of a growing sequence of ids, given out as soon as it is certain: never half a UTF-8 character, and
// the pieces together are what decode() of all the ids gives. Only where byte-fallback tokens ("<0xE4>")
// leave a character broken do they differ: decode() then gives up the whole run of such tokens, a stream
// keeps its whole characters.
class TokenStream {
 public:
  TokenStream(const Tokenizer& tokenizer, bool skip_special);
  ~TokenStream();
  TokenStream(TokenStream&&) noexcept;

  // The text that `id` completes; empty while a character is unfinished.
  std::string push(int id);
  // What is still held back at the end, an unfinished character as U+FFFD.
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tandem::text
