#include <fmt/format.h>

#include <iostream>
#include <iterator>

#include "base/error.h"
#include "cli/answer.h"
#include "cli/chat.h"
#include "cli/interrupt.h"
#include "cli/sampling_flags.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "cli/verbs.h"

namespace tandem::cli {
namespace {

struct RunFlags {
  std::string model;
  std::string prompt;
  std::string system;
  bool raw = false;
  bool json = false;
  SamplingFlags sampling;
  ClusterFlags cluster;
};

std::vector<int> prompt_ids(const RunFlags& flags, const server::ServedModel& model) {
  if (flags.raw) return model.tokenizer.encode(flags.prompt, /*add_special=*/true);
  auto messages = nlohmann::ordered_json::array();
  if (!flags.system.empty()) messages.push_back({{"role", "system"}, {"content", flags.system}});
  messages.push_back({{"role", "user"}, {"content", flags.prompt}});
  return model.chat_prompt(messages);
}

void print_json(const Answer& answer, const RunFlags& flags, const engine::Sampling& sampling,
                const server::ServedModel& model, const cluster::Conductor& conductor) {
  const nlohmann::json object{
      {"model", model.name},
      {"prompt", flags.prompt},
      {"text", answer.text},
      {"ids", answer.ids},
      {"finish_reason", engine::to_json(engine::Event(answer.done))["done"]["reason"]},
      {"seed", sampling.seed},
      {"prompt_tokens", answer.done.prompt_tokens},
      {"generated_tokens", answer.done.generated_tokens},
      {"prefill_s", answer.done.prefill_s},
      {"decode_s", answer.done.decode_s},
      {"prefill_tokens_per_s", answer.prefill_tokens_per_s()},
      {"decode_tokens_per_s", answer.decode_tokens_per_s()},
      {"ranks", ranks_json(conductor)}};
  print_result(object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n');
}

int answer_once(const RunFlags& flags, const server::ServedModel& model, cluster::Conductor& conductor) {
  const auto sampling = flags.sampling.sampling(model);
  engine::GenerateRequest request{0, prompt_ids(flags, model), flags.sampling.max_tokens,
                                  model.config.end_ids, sampling};
  Answer answer;
  if (flags.json) {
    answer = generate(conductor, model.tokenizer, std::move(request), [](std::string_view) {});
    print_json(answer, flags, sampling, model, conductor);
  } else {
    answer = print_answer(conductor, model.tokenizer, std::move(request));
  }
  return answer.done.reason == engine::FinishReason::cancelled ? exit_interrupted : 0;
}

int run(RunFlags flags) {
  const bool chats = flags.prompt.empty() && stdin_is_terminal();
  if (chats && (flags.raw || flags.json)) throw InputError("--raw and --json need a PROMPT");
  if (flags.prompt.empty() && !chats) {
    flags.prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
    if (flags.prompt.empty()) throw InputError("no prompt: give one after MODEL or on stdin");
  }
  const auto folder = find_model(flags.model);
  const auto model = server::load_served_model(folder, short_name(flags.model));
  if (!flags.raw && !model.chat_template) {
    throw InputError(fmt::format("{} has no chat template: give --raw to continue the prompt as it stands",
                                 folder.string()));
  }
  validate(flags.sampling.sampling(model));
  const auto plan = make_plan(flags.cluster, model.config);
  const auto conductor = start(folder, plan, flags.cluster);
  if (!chats) return answer_once(flags, model, *conductor);
  chat(*conductor, model, {flags.system, flags.sampling.max_tokens, flags.sampling.sampling(model)});
  return 0;
}

}  // namespace

void add_run(CLI::App& program, int& exit_code) {
  auto* verb = program.add_subcommand("run", "Answer a prompt, or chat on the terminal");
  auto flags = std::make_shared<RunFlags>();
  verb->add_option("MODEL", flags->model, "A folder, or a name in the local Hugging Face cache (org/model)")
      ->required();
  verb->add_option("PROMPT", flags->prompt, "What to answer; without it stdin, or a chat on a terminal");
  verb->add_option("--system", flags->system, "System message");
  verb->add_flag("--raw", flags->raw, "Continue the prompt as it stands, without the chat template");
  verb->add_flag("--json", flags->json, "One JSON object with text, ids, speed and memory");
  add_sampling_flags(*verb, flags->sampling);
  add_request_flags(*verb, flags->cluster);
  add_cluster_flags(*verb, flags->cluster);
  verb->callback([flags, &exit_code] { exit_code = run(*flags); });
}

}  // namespace tandem::cli
