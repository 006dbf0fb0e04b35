#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "text/tokenizer_trainer.h"
#include "train/data.h"

namespace tandem::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const char* const begin = "<|begin_of_sentence|>";
const char* const end = "<|end_of_sentence|>";

// A turn each of people, the model and its tools; tools are listed before them.
const char* const chat_template =
    R"({{ bos_token }}{% if tools %}{{ '<|Tools|>' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %})"
    R"({% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }})"
    R"({% elif m['role'] == 'user' %}{{ '<|User|>' + m['content'] }})"
    R"({% elif m['role'] == 'assistant' %}{{ '<|Assistant|>' }}{% if m['content'] %}{{ m['content'] }}{% endif %})"
    R"({% for c in m['tool_calls'] or [] %}{{ '<tool_call>' + c['function'] | tojson + '</tool_call>' }}{% endfor %}{{ eos_token }})"
    R"({% elif m['role'] == 'tool' %}{{ '<|Tool|>' + m['content'] }}{% endif %}{% endfor %})"
    R"({% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %})";

struct TokenizerFlags {
  std::string data, out;
  std::optional<int> vocabulary;
  std::vector<std::string> tokens{"<think>", "</think>"};
};

// Without a flag config.json's, which the model will have.
int vocabulary_of(const TokenizerFlags& flags) {
  constexpr int usual = 4096;
  const auto config = find_json_file(fs::path(flags.out) / "config.json");
  const auto found = config ? config->value("vocab_size", json()) : json();
  const int wanted = found.is_number_integer() ? found.get<int>() : 0;
  if (wanted != 0 && (wanted < limits::vocabulary_least || wanted > limits::vocabulary_most))
    throw InputError(fmt::format("{}: config.json there has a vocab_size of {}: let it be {} to {}",
                                 flags.out, wanted, limits::vocabulary_least, limits::vocabulary_most));
  if (!flags.vocabulary) return wanted > 0 ? wanted : usual;
  if (wanted > 0 && *flags.vocabulary > wanted)
    throw InputError(
        fmt::format("--vocab-size {}: config.json there has a vocab_size of {}: give no more, or change it",
                    *flags.vocabulary, wanted));
  return *flags.vocabulary;
}

void train(const TokenizerFlags& flags) {
  const fs::path data = flags.data, out = flags.out;
  if (fs::exists(out / "tokenizer.json"))
    throw InputError(
        fmt::format("{} holds a tokenizer.json already: remove it, or give another folder", flags.out));
  const int vocabulary = vocabulary_of(flags);
  text::TokenizerTrainer trainer(vocabulary);
  for (const char* token : {begin, end, "<|User|>", "<|Assistant|>", "<|Tools|>", "<|Tool|>"})
    trainer.add_token(token, /*special=*/true);
  for (const auto& token : flags.tokens) trainer.add_token(token, /*special=*/false);
  std::size_t texts = 0;
  train::for_each_line(fs::is_directory(data) ? data / "train.jsonl" : data, [&](const auto& line) {
    for (const auto& text : train::spoken_texts(line)) {
      trainer.add_text(text);
      ++texts;
    }
  });
  if (texts == 0) throw InputError(fmt::format("{} has no text to train on", flags.data));
  const std::string tokenizer = trainer.finish();
  std::error_code error;
  fs::create_directories(out, error);
  if (error) throw InputError(fmt::format("{}: {}", flags.out, error.message()));
  const json config{{"bos_token", begin}, {"eos_token", end}, {"tokenizer_class", "PreTrainedTokenizerFast"}};
  write_file(out / "tokenizer_config.json", config.dump(2) + '\n');
  if (!fs::exists(out / "chat_template.jinja")) write_file(out / "chat_template.jinja", chat_template);
  write_file(out / "tokenizer.json", tokenizer);
  const auto tokens = json::parse(tokenizer)["model"]["vocab"].size();
  note("{} tokens of {} texts\n", tokens, texts);
  if (tokens < static_cast<std::size_t>(vocabulary))
    note("the texts have no more than {} tokens that occur twice\n", tokens);
  print_result((out / "tokenizer.json").string() + '\n');
}

}  // namespace

void add_tokenizer(CLI::App& program) {
  auto* verb =
      program.add_subcommand("tokenizer", "Make a tokenizer for a model that is trained from scratch");
  verb->require_subcommand(1);
  auto* training = verb->add_subcommand("train", "Byte-level BPE of texts, with a chat template");
  auto flags = std::make_shared<TokenizerFlags>();
  training
      ->add_option("DATA", flags->data, "A folder with train.jsonl as tandem train reads it, or such a file")
      ->required();
  training->add_option("OUT", flags->out, "The folder to write: the model's, that has its config.json")
      ->required();
  training
      ->add_option("--vocab-size", flags->vocabulary,
                   "Tokens, 512 or more [vocab_size of OUT's config.json; 4096 where there is none]")
      ->check(CLI::Range(limits::vocabulary_least, limits::vocabulary_most));
  training->add_option("--tokens", flags->tokens, "Further tokens that are never cut, and appear in answers")
      ->delimiter(',')
      ->capture_default_str();
  training->callback([flags] { train(*flags); });
}

}  // namespace tandem::cli
