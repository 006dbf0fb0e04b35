#include "engine/step.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <cstring>

#include "base/error.h"

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
    check(sequence);
    plan.sequences.push_back(std::move(sequence));
  }
  if (!reader.at_end()) throw ClusterError("a step plan goes on after its end");
  return plan;
}

std::vector<float> StepRunner::run(const StepPlan& plan) {
  for (const int slot : plan.released_slots) caches_.erase(slot);
  if (plan.sequences.empty()) return {};
  std::vector<int> ids, wanted;  // wanted: rows of all tokens
  std::vector<models::SequenceRows> sequences;
  for (const auto& sequence : plan.sequences) {
    auto& cache = caches_.try_emplace(sequence.slot, static_cast<int>(model_.layers.size())).first->second;
    for (const int row : sequence.rows) wanted.push_back(static_cast<int>(ids.size()) + row);
    ids.insert(ids.end(), sequence.tokens.begin(), sequence.tokens.end());
    sequences.push_back({static_cast<int>(sequence.tokens.size()), &cache});
  }
  const mx::array hidden = models::forward(model_, int_array(ids), sequences, context_);  // [T, hidden]
  if (wanted.empty()) {
    mx::eval(hidden);
    return {};
  }
  mx::array logits =
      mx::astype(models::logits(model_, mx::take(hidden, int_array(wanted), 0), context_), mx::float32);
  logits = mx::contiguous(logits);  // [rows, vocabulary]
  mx::eval(logits);
  return {logits.data<float>(), logits.data<float>() + logits.size()};
}

std::size_t StepRunner::cache_bytes() const {
  std::size_t sum = 0;
  for (const auto& [slot, cache] : caches_) sum += cache.bytes();
  return sum;
}

}  // namespace tandem::engine
