#include "engine/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/limits.h"
#include "engine/sampler.h"

namespace tandem::engine {
namespace {

// log Σ exp(row) − row[id], nats.
double negative_log_likelihood(std::span<const float> row, int id) {
  const double highest = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (const float logit : row) sum += std::exp(logit - highest);
  return highest + std::log(sum) - row[id];
}

const std::vector<int>& ids_of(const GenerateRequest& request) { return request.prompt; }
const std::vector<int>& ids_of(const ScoreRequest& request) { return request.ids; }

void check_ids(const std::vector<int>& ids, const ServingLimits& limits) {
  if (ids.empty()) throw InputError("the prompt is empty: give at least one token", "prompt");
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= limits.vocabulary) {
      throw InputError(fmt::format("id {} at position {} is out of range: the vocabulary has ids 0 to {}",
                                   ids[i], i, limits.vocabulary - 1),
                       "prompt");
    }
  }
}

}  // namespace

void Scheduler::check(const Request& request) const {
  if (const auto* generate = std::get_if<GenerateRequest>(&request)) {
    check_ids(generate->prompt, limits_);
    validate(generate->sampling);
    const int tokens = static_cast<int>(generate->prompt.size());
    if (tokens >= limits_.context) {
      throw InputError(
          fmt::format("the prompt has {} tokens, but the context holds {} for prompt and answer together: "
                      "shorten the prompt",
                      tokens, limits_.context),
          "prompt");
    }
  } else if (const auto* score = std::get_if<ScoreRequest>(&request)) {
    check_ids(score->ids, limits_);
    const int tokens = static_cast<int>(score->ids.size());
    if (tokens > limits_.context) {
      throw InputError(fmt::format("{} ids are more than the context of {}", tokens, limits_.context),
                       "prompt");
    }
    for (const int position : score->positions) {
      if (position < 0 || position >= tokens) {
        throw InputError(
            fmt::format("position {} is out of range: there are positions 0 to {}", position, tokens - 1),
            "positions");
      }
    }
  }
}

std::vector<Event> Scheduler::submit(Request request, double now_s) {
  if (const auto* c = std::get_if<Cancel>(&request)) return cancel(c->id, now_s);
  const auto id = std::visit([](const auto& r) { return r.id; }, request);
  try {
    check(request);
    if (queue_.size() >= limits::queued_requests)
      throw InputError("too many requests are waiting; try again later");
  } catch (const InputError& error) {
    return {RefusedEvent{id, error.what(), error.param()}};
  }
  Sequence sequence;
  sequence.slot = next_slot_++;
  sequence.submitted_s = now_s;
  if (auto* generate = std::get_if<GenerateRequest>(&request)) {
    const int room = limits_.context - static_cast<int>(generate->prompt.size());
    generate->max_tokens = generate->max_tokens > 0 ? std::min(generate->max_tokens, room) : room;
    sequence.request = std::move(*generate);
  } else {
    sequence.request = std::move(std::get<ScoreRequest>(request));
  }
  sequence.ids = std::visit([](const auto& r) { return ids_of(r); }, sequence.request);
  sequence.prompt_tokens = static_cast<int>(sequence.ids.size());
  queue_.push_back(std::move(sequence));
  return {};
}

std::vector<Event> Scheduler::cancel(std::uint64_t id, double now_s) {
  const auto found = std::find_if(queue_.begin(), queue_.end(), [&](const Sequence& sequence) {
    return std::visit([](const auto& r) { return r.id; }, sequence.request) == id;
  });
  if (found == queue_.end()) return {};  // it ended meanwhile
  const DoneEvent done = end(*found, FinishReason::cancelled, now_s);
  queue_.erase(found);
  return {done};
}

std::vector<int> Scheduler::wanted_rows(const Sequence& sequence, int tokens) const {
  const int first = sequence.planned;
  std::vector<int> rows;
  if (const auto* score = std::get_if<ScoreRequest>(&sequence.request)) {
    const auto wanted = [&](int position) {
      if (score->nll) return position + 1 < sequence.prompt_tokens;
      return score->positions.empty() ||
             std::find(score->positions.begin(), score->positions.end(), position) != score->positions.end();
    };
    for (int row = 0; row < tokens; ++row) {
      if (wanted(first + row)) rows.push_back(row);
    }
  } else if (first + tokens == static_cast<int>(sequence.ids.size())) {
    rows.push_back(tokens - 1);
  }
  return rows;
}

// All, or each stage's share, so that every stage has some to compute.
int Scheduler::answers_of_a_step() const {
  const auto end = queue_.begin() + static_cast<std::ptrdiff_t>(running());
  const auto answers =
      std::count_if(queue_.begin(), end, [](const Sequence& sequence) { return sequence.answers(); });
  return (static_cast<int>(answers) + limits_.stages - 1) / limits_.stages;
}

// By the whole prompt's length, so that a row's bits do not depend on how the prompt was cut; never an
// answer's.
bool Scheduler::is_expanded(const Sequence& sequence) const {
  return !sequence.answers() && sequence.prompt_tokens >= limits_.expanded_from;
}

// Stages are filled soonest by small chunks; but in the expanded form each chunk makes all keys and values
// that it sees anew, so a long prompt is cut into no more than what fills them well.
int Scheduler::prompt_tokens_of_a_step() const {
  if (limits_.stages == 1) return limits::prefill_chunk_tokens;
  const auto end = queue_.begin() + static_cast<std::ptrdiff_t>(running());
  const auto first = std::find_if(queue_.begin(), end, [](const Sequence& s) { return !s.answers(); });
  if (first == end || !is_expanded(*first)) return limits::stage_chunk_tokens;
  return std::clamp(first->prompt_tokens / limits::stage_chunks, limits::stage_chunk_tokens,
                    limits::prefill_chunk_tokens);
}

std::int64_t Scheduler::Sequence::most_cached() const {
  const auto* generate = std::get_if<GenerateRequest>(&request);
  const std::int64_t tokens = std::int64_t{prompt_tokens} + (generate ? generate->max_tokens : 0);
  return (tokens + cache_block_tokens - 1) / cache_block_tokens * cache_block_tokens;
}

// Those before a running one only get fewer, so it stays among them.
std::size_t Scheduler::running() const {
  const std::size_t most = std::min(queue_.size(), limits::batch_sequences);
  std::size_t count = 0;
  for (std::int64_t room = limits_.cache_tokens; count < most; ++count) {
    room -= queue_[count].most_cached();
    if (room < 0) break;
  }
  return count;
}

bool Scheduler::Sequence::awaits_last_token() const {
  const auto* generate = std::get_if<GenerateRequest>(&request);
  const int answered = static_cast<int>(ids.size()) - prompt_tokens;
  return generate && planned == static_cast<int>(ids.size()) && answered + 1 >= generate->max_tokens;
}

StepPlan Scheduler::ahead() {
  StepPlan plan;
  std::vector<Sequence*> going;
  const std::size_t count = running();
  for (std::size_t i = 0; i < count; ++i) {
    Sequence& sequence = queue_[i];
    if (sequence.awaits_last_token()) continue;
    const auto* generate = std::get_if<GenerateRequest>(&sequence.request);
    const bool may = generate && takes_likeliest(generate->sampling) &&
                     sequence.planned == static_cast<int>(sequence.ids.size()) &&
                     sequence.planned % cache_block_tokens != 0;
    if (!may) return {};
    going.push_back(&sequence);
  }
  if (going.empty()) return {};
  plan.released_slots = std::exchange(released_, {});
  for (Sequence* sequence : going) {
    plan.sequences.push_back({sequence->slot, {likeliest_token}, {0}, false});
    ++sequence->planned;
  }
  return plan;
}

StepPlan Scheduler::next(double now_s) {
  StepPlan plan;
  plan.released_slots = std::exchange(released_, {});
  int prompt_tokens = prompt_tokens_of_a_step(), scored_tokens = limits::score_chunk_tokens,
      answers = answers_of_a_step();
  const std::size_t count = running();
  for (std::size_t i = 0; i < count; ++i) {
    Sequence& sequence = queue_[i];
    const int left = static_cast<int>(sequence.ids.size()) - sequence.planned;
    int& room = sequence.answers()                                       ? answers
                : std::holds_alternative<ScoreRequest>(sequence.request) ? scored_tokens
                                                                         : prompt_tokens;
    const int tokens = std::min(left, room);
    if (tokens == 0) continue;
    room -= tokens;
    if (sequence.started_s < 0) sequence.started_s = now_s;
    const auto first = sequence.ids.begin() + sequence.planned;
    plan.sequences.push_back(
        {sequence.slot, {first, first + tokens}, wanted_rows(sequence, tokens), is_expanded(sequence)});
    sequence.planned += tokens;
  }
  return plan;
}

std::vector<Event> Scheduler::finish(const StepPlan& plan, StepResult result, double now_s) {
  std::vector<Event> events;
  std::span<float> rows = result.logits;
  std::span<const int> likeliest = result.likeliest;
  for (const SequenceStep& step : plan.sequences) {
    const auto found = std::find_if(queue_.begin(), queue_.end(),
                                    [&](const Sequence& sequence) { return sequence.slot == step.slot; });
    const std::size_t logits = step.rows.size() * static_cast<std::size_t>(limits_.vocabulary);
    const auto own_rows = rows.first(logits);
    const auto own_likeliest = likeliest.first(likeliest.empty() ? 0 : step.rows.size());
    rows = rows.subspan(logits);
    likeliest = likeliest.subspan(own_likeliest.size());
    if (found == queue_.end()) continue;  // it ended meanwhile
    const auto own = finish_step(*found, step, own_rows, own_likeliest, now_s);
    events.insert(events.end(), own.begin(), own.end());
    if (!own.empty() && std::holds_alternative<DoneEvent>(own.back())) queue_.erase(found);
  }
  return events;
}

std::vector<Event> Scheduler::finish_step(Sequence& sequence, const SequenceStep& step, std::span<float> rows,
                                          std::span<const int> likeliest, double now_s) {
  const auto tokens = static_cast<int>(step.tokens.size());
  if (std::holds_alternative<GenerateRequest>(sequence.request)) {
    sequence.computed += tokens;
    return step.rows.empty() ? std::vector<Event>{} : finish_generate(sequence, rows, likeliest, now_s);
  }
  auto events = finish_score(sequence, step, rows);
  sequence.computed += tokens;
  if (sequence.computed == sequence.prompt_tokens) {
    const auto& score = std::get<ScoreRequest>(sequence.request);
    if (score.nll) events.push_back(NllEvent{score.id, sequence.sum_nll, sequence.prompt_tokens - 1});
    events.push_back(end(sequence, FinishReason::end, now_s));
  }
  return events;
}

std::vector<Event> Scheduler::finish_generate(Sequence& sequence, std::span<float> rows,
                                              std::span<const int> likeliest, double now_s) {
  const auto& request = std::get<GenerateRequest>(sequence.request);
  const std::span<const int> ids = sequence.ids;
  // Of equal logits the one that the next step may have been given.
  const bool is_given = !likeliest.empty() && takes_likeliest(request.sampling);
  if (is_given) check_finite(rows);
  const int token = is_given ? likeliest.back()
                             : sample(rows, request.sampling, ids.first(sequence.prompt_tokens),
                                      ids.subspan(sequence.prompt_tokens), static_cast<int>(ids.size()));
  const int answered = static_cast<int>(ids.size()) - sequence.prompt_tokens;
  if (answered == 0) sequence.first_token_s = now_s;
  if (std::find(request.end_ids.begin(), request.end_ids.end(), token) != request.end_ids.end()) {
    return {end(sequence, FinishReason::end, now_s)};
  }
  sequence.ids.push_back(token);
  std::vector<Event> events{TokenEvent{request.id, token}};
  if (answered + 1 == request.max_tokens) events.push_back(end(sequence, FinishReason::length, now_s));
  return events;
}

std::vector<Event> Scheduler::finish_score(Sequence& sequence, const SequenceStep& step,
                                           std::span<float> rows) const {
  const auto& request = std::get<ScoreRequest>(sequence.request);
  const auto vocabulary = static_cast<std::size_t>(limits_.vocabulary);
  std::vector<Event> events;
  for (std::size_t i = 0; i < step.rows.size(); ++i) {
    const auto row = rows.subspan(i * vocabulary, vocabulary);
    check_finite(row);
    const int position = sequence.computed + step.rows[i];
    if (request.nll) {
      sequence.sum_nll += negative_log_likelihood(row, sequence.ids[position + 1]);
    } else {
      events.push_back(LogitsEvent{request.id, position, {row.begin(), row.end()}});
    }
  }
  return events;
}

DoneEvent Scheduler::end(Sequence& sequence, FinishReason reason, double now_s) {
  const auto id = std::visit([](const auto& r) { return r.id; }, sequence.request);
  DoneEvent done{id, reason, sequence.prompt_tokens,
                 static_cast<int>(sequence.ids.size()) - sequence.prompt_tokens};
  const bool started = sequence.started_s >= 0;
  done.queued_s = (started ? sequence.started_s : now_s) - sequence.submitted_s;
  if (started) {
    const bool answers = sequence.first_token_s > 0;
    done.prefill_s = (answers ? sequence.first_token_s : now_s) - sequence.started_s;
    done.decode_s = answers ? now_s - sequence.first_token_s : 0;
    released_.push_back(sequence.slot);
  }
  return done;
}

}  // namespace tandem::engine
