// Choosing a token from logits.
#pragma once

#include <cstdint>
#include <span>

#include "engine/request.h"

namespace tandem::engine {

// The token for `position` (of the whole sequence). `prompt` and `answer` are the ids so far, for the
// penalties. Temperature, top-k, top-p (Holtzman et al. 2019, arXiv:1904.09751) and min-p (Nguyen et al.
// 2024, arXiv:2407.01082) apply in this order, as in transformers. Ties go to the lower id. `logits`
// [vocabulary] is overwritten. Throws what check_finite() throws.
int sample(std::span<float> logits, const Sampling& sampling, std::span<const int> prompt,
           std::span<const int> answer, int position);

// Whether sample() is the highest logit's token, without penalties.
bool takes_likeliest(const Sampling& sampling);

// Throws std::runtime_error where a logit is NaN or infinite.
void check_finite(std::span<const float> logits);

// A uniform number in [0, 1), a function of its arguments alone (splitmix64, Steele et al. 2014).
double uniform_noise(std::uint64_t seed, std::uint64_t position);

}  // namespace tandem::engine
