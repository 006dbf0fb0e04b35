#include "engine/step.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "parallel/messages.h"
#include "parallel/tcp_group.h"

namespace tandem::engine {
namespace {

namespace mx = mlx::core;

void put(std::vector<std::int32_t>& words, const std::vector<int>& list) {
  words.push_back(static_cast<std::int32_t>(list.size()));
  words.insert(words.end(), list.begin(), list.end());
}

class WordReader {
 public:
  explicit WordReader(std::vector<std::int32_t> words) : words_(std::move(words)) {}

  int next() {
    if (at_ == words_.size()) throw ClusterError("a step plan is cut short");
    return words_[at_++];
  }
  bool flag() {
    const int word = next();
    if (word != 0 && word != 1) throw ClusterError("a step plan has a flag that is neither 0 nor 1");
    return word == 1;
  }
  bool at_end() const { return at_ == words_.size(); }
  std::vector<int> list() {
    const int size = next();
    if (size < 0 || static_cast<std::size_t>(size) > words_.size() - at_)
      throw ClusterError("a step plan is cut short");
    std::vector<int> values(words_.begin() + static_cast<std::ptrdiff_t>(at_),
                            words_.begin() + static_cast<std::ptrdiff_t>(at_ + size));
    at_ += static_cast<std::size_t>(size);
    return values;
  }

 private:
  std::vector<std::int32_t> words_;
  std::size_t at_ = 0;
};

void check(const SequenceStep& sequence) {
  if (sequence.tokens.empty()) throw ClusterError("a step plan has a sequence without tokens");
  int before = -1;
  for (const int row : sequence.rows) {
    if (row <= before || row >= static_cast<int>(sequence.tokens.size()))
      throw ClusterError("a step plan wants rows that it has no tokens for");
    before = row;
  }
}

std::span<char> bytes_of(std::vector<float>& numbers) {
  return {reinterpret_cast<char*>(numbers.data()), numbers.size() * sizeof(float)};
}

mx::array int_array(const std::vector<int>& values) {
  return mx::array(values.begin(), {static_cast<int>(values.size())}, mx::int32);
}

}  // namespace

std::vector<std::uint8_t> encode(const StepPlan& plan) {
  std::vector<std::int32_t> words;
  put(words, plan.released_slots);
  words.push_back(static_cast<std::int32_t>(plan.sequences.size()));
  for (const auto& sequence : plan.sequences) {
    words.push_back(sequence.slot);
    put(words, sequence.tokens);
    put(words, sequence.rows);
    words.push_back(sequence.expanded ? 1 : 0);
  }
  std::vector<std::uint8_t> bytes(words.size() * sizeof(std::int32_t));
  std::memcpy(bytes.data(), words.data(), bytes.size());
  return bytes;
}

StepPlan decode(std::span<const std::uint8_t> bytes) {
  if (bytes.size() % sizeof(std::int32_t) != 0) throw ClusterError("a step plan is cut short");
  std::vector<std::int32_t> words(bytes.size() / sizeof(std::int32_t));
  if (!words.empty()) std::memcpy(words.data(), bytes.data(), words.size() * sizeof(std::int32_t));
  WordReader reader(std::move(words));
  StepPlan plan;
  plan.released_slots = reader.list();
  int left = reader.next();
  if (left < 0) throw ClusterError("a step plan has a negative number of sequences");
  for (; left > 0; --left) {
    SequenceStep sequence;
    sequence.slot = reader.next();
    sequence.tokens = reader.list();
    sequence.rows = reader.list();
    sequence.expanded = reader.flag();
    check(sequence);
    plan.sequences.push_back(std::move(sequence));
  }
  if (!reader.at_end()) throw ClusterError("a step plan goes on after its end");
  return plan;
}

// All tokens, one sequence's after the other.
mx::array StepRunner::ids_of(const StepPlan& plan) const {
  std::vector<int> ids, places;  // places: of each id, in `ids` followed by likeliest_
  bool known = true;
  std::size_t total = 0;
  for (const auto& sequence : plan.sequences) total += sequence.tokens.size();
  for (const auto& sequence : plan.sequences) {
    for (const int token : sequence.tokens) {
      int place = static_cast<int>(ids.size());
      if (token == likeliest_token) {
        const auto row = likeliest_rows_.find(sequence.slot);
        if (row == likeliest_rows_.end()) throw ClusterError("a step plan awaits a token that no step gives");
        place = static_cast<int>(total) + row->second;
        known = false;
      }
      ids.push_back(token == likeliest_token ? 0 : token);
      places.push_back(place);
    }
  }
  if (known) return int_array(ids);
  return mx::take(mx::concatenate({int_array(ids), *likeliest_}, 0), int_array(places), 0);
}

void StepRunner::start(const StepPlan& plan) {
  for (const int slot : plan.released_slots) caches_.erase(slot);
  std::optional<mx::array> ids;  // [tokens]
  if (!plan.sequences.empty()) ids = ids_of(plan);
  int tokens = 0;
  std::vector<int> wanted;  // rows of all tokens
  std::vector<models::SequenceRows> sequences;
  std::map<int, int> rows_of_slots;
  for (const auto& sequence : plan.sequences) {
    auto& cache = caches_.try_emplace(sequence.slot, static_cast<int>(model_.layers.size()), cache_format_)
                      .first->second;
    for (const int row : sequence.rows) {
      rows_of_slots[sequence.slot] = static_cast<int>(wanted.size());
      wanted.push_back(tokens + row);
    }
    tokens += static_cast<int>(sequence.tokens.size());
    sequences.push_back({static_cast<int>(sequence.tokens.size()), &cache, sequence.expanded});
  }
  ++started_;
  if (samples()) {
    const auto vocabulary = static_cast<std::size_t>(model_.config.sizes.vocabulary);
    under_way_.push_back({started_, wanted.size() * vocabulary, {}, {}});
  }
  if (!ids) return;
  const mx::array input = place_.first() ? models::embed(model_, *ids, context_) : take_rows(tokens);
  const mx::array hidden = models::forward(model_, input, sequences, context_);  // [T, hidden]
  if (!place_.last()) return give_rows(hidden);
  if (wanted.empty() && overlaps_) {
    mx::async_eval(hidden);
    under_way_.back().computing = {hidden};
    return;
  }
  if (wanted.empty()) return mx::eval(hidden);
  if (overlaps_) likeliest_rows_ = std::move(rows_of_slots);
  give_logits(models::logits(model_, mx::take(hidden, int_array(wanted), 0), context_));
}

StepResult StepRunner::finish() {
  UnderWay& step = under_way_.front();
  StepResult result;
  if (!step.computing.empty()) {
    for (mx::array& array : step.computing) array.wait();
    if (step.logits > 0) {
      const mx::array &logits = step.computing[0], &likeliest = step.computing[1];
      result.logits.assign(logits.data<float>(), logits.data<float>() + logits.size());
      result.likeliest.assign(likeliest.data<int>(), likeliest.data<int>() + likeliest.size());
    }
  } else {
    if (awaits(step)) {
      step.arrived.resize(step.logits);
      parallel::exchange(world_, {{place_.leaders.back(), std::nullopt, bytes_of(step.arrived)}});
    }
    result.logits = std::move(step.arrived);
  }
  under_way_.pop_front();
  return result;
}

bool StepRunner::can_finish() const {
  if (under_way_.empty()) return false;
  const UnderWay& oldest = under_way_.front();
  if (oldest.computing.empty()) return !awaits(oldest);
  return std::all_of(oldest.computing.begin(), oldest.computing.end(),
                     [](const mx::array& x) { return x.is_available(); });
}

// [T, hidden] from the stage before.
mx::array StepRunner::take_rows(int tokens) const {
  mx::array rows = mx::zeros({tokens, model_.config.sizes.hidden}, context_.activations, mx::Device::cpu);
  rows.eval();
  parallel::exchange(world_, {{place_.source, std::nullopt, std::span(rows.data<char>(), rows.nbytes())}});
  return rows;
}

// To the stages after. Takes logits in at the same time where the last stage, which is to have them taken off
// before it goes on, may keep the next one from reading.
void StepRunner::give_rows(const mx::array& rows) {
  mx::array sent = mx::contiguous(mx::astype(rows, context_.activations));
  sent.eval();
  std::optional<std::span<char>> logits;
  if (UnderWay* step = step_to_take_in()) {
    step->arrived.resize(step->logits);
    logits = bytes_of(step->arrived);
  }
  parallel::hand_over(world_, place_.targets, std::span<const char>(sent.data<char>(), sent.nbytes()),
                      place_.leaders.back(), logits);
}

// The oldest step whose logits are missing, where so many came after it that each stage may hold one: the
// last cannot take another before it is rid of these logits, so neither can any other.
StepRunner::UnderWay* StepRunner::step_to_take_in() {
  const auto oldest =
      std::find_if(under_way_.begin(), under_way_.end(), [&](const auto& step) { return awaits(step); });
  const auto later_stages = static_cast<std::uint64_t>(place_.stages - 1);
  return oldest != under_way_.end() && started_ - oldest->number >= later_stages ? &*oldest : nullptr;
}

void StepRunner::give_logits(const mx::array& logits) {
  mx::array rows = mx::contiguous(mx::astype(logits, mx::float32));  // [rows, vocabulary]
  if (overlaps_) {
    likeliest_ = mx::astype(mx::argmax(rows, -1), mx::int32);
    mx::async_eval(rows, *likeliest_);
    under_way_.back().computing = {rows, *likeliest_};
    return;
  }
  rows.eval();
  if (samples()) {
    under_way_.back().arrived.assign(rows.data<float>(), rows.data<float>() + rows.size());
  } else if (place_.stages > 1 && world_.rank() == place_.leaders.back()) {
    parallel::exchange(world_, {{0, std::span<const char>(rows.data<char>(), rows.nbytes()), std::nullopt}});
  }
}

std::size_t StepRunner::cache_bytes() const {
  std::size_t sum = 0;
  for (const auto& [slot, cache] : caches_) sum += cache.bytes();
  return sum;
}

}  // namespace tandem::engine
