#include "text/tokenizer.h"

#include <fmt/format.h>

#include <cstdint>

#include "base/error.h"
#include "base/file.h"
#include "text/rust_string.h"

namespace tandem::text {

struct Tokenizer::Handle {
  std::unique_ptr<tandem_tokenizer, decltype(&tandem_tokenizer_free)> rust;
};

Tokenizer::Tokenizer(const std::filesystem::path& folder) {
  const auto path = folder / "tokenizer.json";
  const auto json = find_file(path);
  if (!json) {
    throw InputError(
        fmt::format("{}: no such file; name a folder that holds the model's tokenizer.json", path.string()));
  }
  RustString error;
  auto* tokenizer = tandem_tokenizer_new(json->data(), json->size(), error.out());
  if (tokenizer == nullptr) {
    throw InputError(
        fmt::format("{}: not a tokenizer ({}); copy the model's own file again", path.string(), error.str()));
  }
  handle_.reset(new Handle{{tokenizer, tandem_tokenizer_free}});
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<int> Tokenizer::encode(std::string_view text, bool add_special) const {
  RustString error;
  tandem_ids ids{nullptr, 0};
  if (!tandem_tokenizer_encode(handle_->rust.get(), text.data(), text.size(), add_special, &ids,
                               error.out())) {
    throw InputError(fmt::format("the text cannot be split into tokens: {}; send valid UTF-8", error.str()));
  }
  const std::unique_ptr<tandem_ids, void (*)(tandem_ids*)> owner(
      &ids, [](tandem_ids* it) { tandem_ids_free(*it); });
  return {ids.data, ids.data + ids.size};
}

std::string Tokenizer::decode(const std::vector<int>& ids, bool skip_special) const {
  const std::vector<std::uint32_t> unsigned_ids(ids.begin(), ids.end());
  RustString text;
  if (!tandem_tokenizer_decode(handle_->rust.get(), unsigned_ids.data(), unsigned_ids.size(), skip_special,
                               text.out())) {
    throw InputError(fmt::format("the tokenizer's decoder failed: {}", text.str()));
  }
  return text.str();
}

std::optional<int> Tokenizer::id_of(std::string_view token) const {
  std::uint32_t id = 0;
  if (!tandem_tokenizer_id_of(handle_->rust.get(), token.data(), token.size(), &id)) return std::nullopt;
  return static_cast<int>(id);
}

int Tokenizer::vocab_size() const {
  return static_cast<int>(tandem_tokenizer_vocab_size(handle_->rust.get()));
}

struct TokenStream::State {
  std::unique_ptr<tandem_token_stream, decltype(&tandem_token_stream_free)> rust;
};

TokenStream::TokenStream(const Tokenizer& tokenizer, bool skip_special)
    : state_(new State{{tandem_token_stream_new(tokenizer.handle_->rust.get(), skip_special),
                        tandem_token_stream_free}}) {}

TokenStream::~TokenStream() = default;
TokenStream::TokenStream(TokenStream&&) noexcept = default;

std::string TokenStream::push(int id) {
  RustString text;
  if (!tandem_token_stream_push(state_->rust.get(), static_cast<std::uint32_t>(id), text.out())) {
    throw InputError(fmt::format("the tokenizer's decoder failed at token {}: {}", id, text.str()));
  }
  return text.str();
}

std::string TokenStream::finish() {
  RustString text;
  if (!tandem_token_stream_finish(state_->rust.get(), text.out())) {
    throw InputError(fmt::format("the tokenizer's decoder failed at the end: {}", text.str()));
  }
  return text.str();
}

}  // namespace tandem::text
