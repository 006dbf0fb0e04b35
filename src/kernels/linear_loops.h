// The loops of linear() on CPU, compiled once for each instruction set (linear_avx2.cpp, …). No function of
// the standard library is used here: an inline one compiled with AVX could be linked into code that must run
// without.
#pragma once

#include <cstdint>

namespace tandem::kernels {

enum class WeightType { f32, f16, bf16 };

// y[r][o] = sum over i of x[r][i] * weight[o][i]; x [rows, in], weight [out, in], y [rows, out], all
// row-major.
struct LinearArgs {
  const float* x;
  const void* weight;
  float* y;
  std::int64_t rows;
  std::int64_t in;
  std::int64_t out;
  WeightType type;
};

using LinearLoops = void (*)(const LinearArgs&);

void linear_portable(const LinearArgs& args);
void linear_avx2(const LinearArgs& args);    // AVX2, FMA, F16C
void linear_avx512(const LinearArgs& args);  // AVX-512 F, BW, VL

}  // namespace tandem::kernels
