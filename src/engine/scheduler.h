// Rank 0's decisions: which request computes what in the next step. Pure: no clock, no model, no pipe.
#pragma once

#include <climits>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "engine/request.h"
#include "engine/step.h"

namespace tandem::engine {

// What requests are checked against.
struct ServingLimits {
  int vocabulary = 0;
  int context = 0;  // tokens of prompt and answer together
  int stages = 1;   // of the pipeline: so many steps are to be under way at a time
  // Of all requests that run at once, each rounded up to whole blocks of the cache. No less than `context`.
  std::int64_t cache_tokens = INT64_MAX;
  // Prompts of at least so many tokens take latent attention's expanded form (models/attention.h).
  int expanded_from = INT_MAX;
};

class Scheduler {
 public:
  explicit Scheduler(ServingLimits limits) : limits_(limits) {}

  // Queues a request, or answers at once where it is refused or cancelled. `now_s` only times.
  std::vector<Event> submit(Request request, double now_s);

  // Nothing to compute and no cache to drop.
  bool idle() const { return queue_.empty() && released_.empty(); }

  // The next step of the oldest requests, limits::batch_sequences at most and as many as the cache has room
  // for whatever they grow to: the next token of each that answers, and of the prompts as many tokens, the
  // oldest's first, as a step takes. With pipeline stages a part of the answers has its place in each step.
  // May be called again before finish(); a token whose predecessor is not sampled yet waits.
  StepPlan next(double now_s);

  // The step after one that is under way, where it needs nothing of that but likeliest_token, and no new
  // block of a cache; else an empty one: what is not all answers together would read all weights for a part
  // of them.
  StepPlan ahead();

  // What the oldest unfinished step brings: tokens, ends, scores.
  std::vector<Event> finish(const StepPlan& plan, StepResult result, double now_s);

 private:
  struct Sequence {
    std::variant<GenerateRequest, ScoreRequest> request;
    int slot = 0;
    std::vector<int> ids;  // prompt and answer
    int prompt_tokens = 0;
    int planned = 0;   // ids that steps were given
    int computed = 0;  // of these, in finished steps
    double sum_nll = 0;
    double submitted_s = 0, started_s = -1, first_token_s = 0;

    // Whether the token that is being computed is the answer's last one.
    bool awaits_last_token() const;
    bool answers() const { return planned >= prompt_tokens; }
    std::int64_t most_cached() const;  // tokens of the cache that it can come to take
  };

  void check(const Request& request) const;
  std::size_t running() const;
  int answers_of_a_step() const;
  int prompt_tokens_of_a_step() const;
  bool is_expanded(const Sequence& sequence) const;
  std::vector<int> wanted_rows(const Sequence& sequence, int tokens) const;
  std::vector<Event> finish_step(Sequence& sequence, const SequenceStep& step, std::span<float> rows,
                                 std::span<const int> likeliest, double now_s);
  std::vector<Event> finish_generate(Sequence& sequence, std::span<float> rows,
                                     std::span<const int> likeliest, double now_s);
  std::vector<Event> finish_score(Sequence& sequence, const SequenceStep& step, std::span<float> rows) const;
  DoneEvent end(Sequence& sequence, FinishReason reason, double now_s);
  std::vector<Event> cancel(std::uint64_t id, double now_s);

  ServingLimits limits_;
  std::deque<Sequence> queue_;  // the first running() run
  std::vector<int> released_;
  int next_slot_ = 0;
};

}  // namespace tandem::engine
