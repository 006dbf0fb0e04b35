// How fast linear() reads and computes, for each format: bench_kernels [loops] [threads] [rows...]
// One line each: format, rows, GB/s of the packed weights, G products of two operations a second.
#include <fmt/format.h>
#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <chrono>
#include <cstdlib>

#include "kernels/linear.h"
#include "kernels/threads.h"

namespace mx = mlx::core;
using namespace tandem::kernels;

namespace {

// `count` copies of one packed matrix: together they are larger than every cache.
std::vector<Matrix> matrices_of(const std::string& format, int out, int in, int count) {
  const mx::array w = mx::random::normal({out, in});
  Matrix matrix;
  if (format == "q8" || format == "q4") {
    const int bits = format == "q8" ? 8 : 4;
    const auto parts = mx::quantize(mx::astype(w, mx::float16), 64, bits);
    matrix = {parts[0], Affine{parts[1], parts[2], 64, bits}, nullptr};
  } else {
    const auto dtype = format == "f32" ? mx::float32 : format == "f16" ? mx::float16 : mx::bfloat16;
    matrix = {mx::astype(w, dtype), std::nullopt, nullptr};
  }
  std::vector<Matrix> made;
  for (int i = 0; i < count; ++i) made.push_back(pack(matrix));
  return made;
}

}  // namespace

int main(int argc, char** argv) {
  mx::set_default_device(mx::Device::cpu);
  if (argc > 1 && std::string(argv[1]) != "auto") use_loops(argv[1]);
  if (argc > 2) set_threads(std::atoi(argv[2]));
  std::vector<int> row_counts{1, 2, 4, 8, 512};
  if (argc > 3) {
    row_counts.clear();
    for (int i = 3; i < argc; ++i) row_counts.push_back(std::atoi(argv[i]));
  }
  constexpr int out = 5632, in = 2048;
  const int count = 48;
  for (const std::string format : {"f32", "f16", "bf16", "q8", "q4"}) {
    const auto matrices = matrices_of(format, out, in, count);
    for (const int rows : row_counts) {
      const mx::array x = mx::random::normal({rows, in});
      mx::eval(x);
      double best = 1e9;
      for (int repeat = 0; repeat < 5; ++repeat) {
        const auto start = std::chrono::steady_clock::now();
        for (const auto& matrix : matrices) linear(x, matrix).eval();
        best =
            std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      }
      fmt::print("{:5} rows {:4}  {:7.1f} GB/s  {:8.1f} GOP/s\n", format, rows,
                 count * matrices[0].bytes() / best / 1e9, 2.0 * count * rows * out * in / best / 1e9);
    }
  }
}
