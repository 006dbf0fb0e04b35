#include "cli/sampling_flags.h"

#include "cli/help.h"

namespace tandem::cli {

engine::Sampling SamplingFlags::sampling(const server::ServedModel& model) const {
  engine::Sampling result = model.default_sampling(/*temperature=*/0);
  result.temperature = temperature.value_or(result.temperature);
  result.top_p = top_p.value_or(result.top_p);
  result.top_k = top_k.value_or(result.top_k);
  result.min_p = min_p.value_or(result.min_p);
  result.seed = seed ? *seed : server::random_seed();
  return result;
}

void add_sampling_flags(CLI::App& verb, SamplingFlags& flags) {
  verb.add_option("--max-tokens", flags.max_tokens, "Longest answer, tokens [what the context allows]")
      ->check(at_least(1));
  verb.add_option("--temperature", flags.temperature,
                  "0 takes the most likely token [the model's advice, else 0]");
  verb.add_option("--top-p", flags.top_p,
                  "Sample from the likeliest tokens that have this probability together");
  verb.add_option("--top-k", flags.top_k, "Sample from this many of the likeliest tokens");
  verb.add_option("--min-p", flags.min_p, "Drop tokens less likely than this share of the likeliest");
  verb.add_option("--seed", flags.seed, "The same seed gives the same answer [random]");
}

}  // namespace tandem::cli
