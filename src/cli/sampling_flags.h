// The options of how answers are sampled, shared by verbs.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>

#include "engine/request.h"
#include "server/served_model.h"

namespace tandem::cli {

struct SamplingFlags {
  int max_tokens = 0;
  std::optional<float> temperature, top_p, min_p;
  std::optional<int> top_k;
  std::optional<std::uint64_t> seed;

  // What was given, over what the model's makers advise; the most likely token where neither says anything.
  engine::Sampling sampling(const server::ServedModel& model) const;
};

void add_sampling_flags(CLI::App& verb, SamplingFlags& flags);

}  // namespace tandem::cli
