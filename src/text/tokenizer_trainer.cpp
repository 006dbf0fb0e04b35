#include "text/tokenizer_trainer.h"

#include <fmt/format.h>

#include "base/error.h"
#include "text/rust_string.h"

namespace tandem::text {

struct TokenizerTrainer::Handle {
  std::unique_ptr<tandem_trainer, decltype(&tandem_trainer_free)> rust;
};

TokenizerTrainer::TokenizerTrainer(int vocabulary)
    : handle_(new Handle{{tandem_trainer_new(static_cast<std::size_t>(vocabulary)), tandem_trainer_free}}) {}

TokenizerTrainer::~TokenizerTrainer() = default;

void TokenizerTrainer::add_token(std::string_view token, bool special) {
  RustString error;
  if (!tandem_trainer_add_token(handle_->rust.get(), token.data(), token.size(), special, error.out()))
    throw InputError(fmt::format("a token cannot be added: {}", error.str()));
}

void TokenizerTrainer::add_text(std::string_view text) {
  RustString error;
  if (!tandem_trainer_add_text(handle_->rust.get(), text.data(), text.size(), error.out()))
    throw InputError(fmt::format("a text cannot be read: {}", error.str()));
}

std::string TokenizerTrainer::finish() {
  RustString text;
  if (!tandem_trainer_finish(handle_->rust.get(), text.out()))
    throw InputError(fmt::format("the tokenizer cannot be trained: {}", text.str()));
  return text.str();
}

}  // namespace tandem::text
