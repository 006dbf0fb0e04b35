// One answer, waited for.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "cluster/conductor.h"
#include "engine/request.h"
#include "text/tokenizer.h"

namespace tandem::cli {

struct Answer {
  std::string text;
  std::vector<int> ids;
  engine::DoneEvent done;

  double decode_tokens_per_s() const;
  double prefill_tokens_per_s() const;
};

// Generates, giving token ids as they come. InputError and ClusterError as below.
engine::DoneEvent generate_ids(cluster::Conductor& conductor, engine::GenerateRequest request,
                               const std::function<void(int)>& on_token);

// Generates for all requests at once; how each ended, in their order.
std::vector<engine::DoneEvent> generate_all(cluster::Conductor& conductor,
                                            std::vector<engine::GenerateRequest> requests);

// Generates, giving text to `on_text` as it comes. Ctrl-C ends the answer (FinishReason::cancelled), not the
// program. InputError where the request is refused, ClusterError where the group is lost.
Answer generate(cluster::Conductor& conductor, const text::Tokenizer& tokenizer,
                engine::GenerateRequest request, const std::function<void(std::string_view)>& on_text);

// The same, the text printed on stdout as it comes and the speed on stderr.
Answer print_answer(cluster::Conductor& conductor, const text::Tokenizer& tokenizer,
                    engine::GenerateRequest request);

// Waits for a score; on_logits is called for each position.
engine::NllEvent score(cluster::Conductor& conductor, engine::ScoreRequest request,
                       const std::function<void(const engine::LogitsEvent&)>& on_logits);

}  // namespace tandem::cli
