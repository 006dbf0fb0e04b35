#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <stdexcept>
#include <unordered_set>
#include <vector>

#include "base/hash.h"

namespace tandem::engine {
namespace {

struct Candidate {
  int id;
  double weight;  // logit, then probability
};

void apply_penalties(std::span<float> logits, const Sampling& s, std::span<const int> prompt,
                     std::span<const int> answer) {
  if (s.repetition_penalty != 1) {
    std::unordered_set<int> seen(prompt.begin(), prompt.end());
    seen.insert(answer.begin(), answer.end());
    for (const int id : seen) logits[id] *= logits[id] > 0 ? 1 / s.repetition_penalty : s.repetition_penalty;
  }
  if (s.frequency_penalty != 0 || s.presence_penalty != 0) {
    std::map<int, int> counts;
    for (const int id : answer) ++counts[id];
    for (const auto& [id, count] : counts) {
      logits[id] -= s.frequency_penalty * static_cast<float>(count) + s.presence_penalty;
    }
  }
}

bool comes_first(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
}

// A token that is 2^53 times less likely than the likeliest is less than the last bit of uniform_noise(): it
// is never drawn, and most of a vocabulary need not be sorted.
constexpr double negligible = 53 * std::numbers::ln2;  // of weights

// The tokens that top-k, top-p and min-p leave, most likely first, with probabilities that need not add up
// to 1.
std::vector<Candidate> candidates(std::span<const float> logits, const Sampling& s) {
  const double highest = static_cast<double>(*std::max_element(logits.begin(), logits.end())) / s.temperature;
  std::vector<Candidate> all;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double weight = static_cast<double>(logits[i]) / s.temperature;
    if (weight >= highest - negligible) all.push_back({static_cast<int>(i), weight});
  }
  if (s.top_k > 0 && static_cast<std::size_t>(s.top_k) < all.size()) {
    std::partial_sort(all.begin(), all.begin() + s.top_k, all.end(), comes_first);
    all.resize(s.top_k);
  } else {
    std::sort(all.begin(), all.end(), comes_first);
  }
  double sum = 0;
  for (auto& candidate : all) {
    // A penalty can make logits infinite; infinity less itself would be no number.
    candidate.weight = candidate.weight == highest ? 1 : std::exp(candidate.weight - highest);
    sum += candidate.weight;
  }
  double before = 0;
  const auto nucleus_end = std::find_if(all.begin(), all.end(), [&](const Candidate& candidate) {
    if (s.top_p < 1 && before >= s.top_p * sum) return true;
    before += candidate.weight;
    return candidate.weight < s.min_p;  // the likeliest has weight 1
  });
  all.erase(std::max(nucleus_end, all.begin() + 1), all.end());
  return all;
}

}  // namespace

double uniform_noise(std::uint64_t seed, std::uint64_t position) {
  return unit_interval(mixed(mixed(seed) ^ position));
}

bool takes_likeliest(const Sampling& s) {
  return s.temperature == 0 && s.repetition_penalty == 1 && s.frequency_penalty == 0 &&
         s.presence_penalty == 0;
}

void check_finite(std::span<const float> logits) {
  if (!std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); })) {
    throw std::runtime_error(
        "the model's logits are not numbers (NaN) or infinite: its weights are damaged or overflow");
  }
}

int sample(std::span<float> logits, const Sampling& s, std::span<const int> prompt,
           std::span<const int> answer, int position) {
  check_finite(logits);
  apply_penalties(logits, s, prompt, answer);
  if (s.temperature == 0)
    return static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  const auto left = candidates(logits, s);
  double sum = 0;
  for (const auto& candidate : left) sum += candidate.weight;
  double target = uniform_noise(s.seed, static_cast<std::uint64_t>(position)) * sum;
  for (const auto& candidate : left) {
    target -= candidate.weight;
    if (target < 0) return candidate.id;
  }
  return left.back().id;
}

}  // namespace tandem::engine
