// Products of rows and the matrices of experts, expert by expert, on the threads of threads.h: what the
// primitives of gather_linear.cpp run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/products.h"

namespace tandem::kernels {

// Of a product's rows, those of which a token has one, not one a choice.
struct PerToken {
  bool x;  // each reads the token's row
  bool y;  // their results are summed
};

// One call. Pairs are of a token and one of its choices; those of no expert count as 0.
struct GatherCall {
  const float* x;
  const std::int32_t* ids;
  const float* weights;  // of pairs, that rows of x are multiplied by, or nullptr
  float* y;
  std::int64_t pairs;
  int choices;  // pairs of a token
  PerToken per_token;
  std::int64_t in, out;

  const float* row_of(std::int64_t pair) const { return x + (per_token.x ? pair / choices : pair) * in; }
  float* result_of(std::int64_t pair) const { return y + (per_token.y ? pair / choices : pair) * out; }
  void copy_row(std::int64_t pair, float* to) const {
    const float* from = row_of(pair);
    if (!weights) {
      std::copy_n(from, in, to);
      return;
    }
    for (std::int64_t i = 0; i < in; ++i) to[i] = from[i] * weights[pair];
  }
};

// y of x and all experts' matrices.
void multiply_by_expert(const GatherCall& call, const std::vector<Operand>& experts);

// Of each expert the sum over its rows of y, which is read here, times x, to [experts, out, in].
void outer_by_expert(const GatherCall& call, int experts, float* to);

}  // namespace tandem::kernels
