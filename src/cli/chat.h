// Talking to a model on the terminal.
#pragma once

#include <string>

#include "cluster/conductor.h"
#include "engine/request.h"
#include "server/served_model.h"

namespace tandem::cli {

struct ChatOptions {
  std::string system;  // empty: none
  int max_tokens = 0;  // 0: as many as the context allows
  engine::Sampling sampling;
};

// Reads lines with editing and a history that is kept, and answers each in the light of what was said; until
// /exit or Ctrl-D. Ctrl-C stops an answer, or drops the line.
void chat(cluster::Conductor& conductor, const server::ServedModel& model, const ChatOptions& options);

}  // namespace tandem::cli
