// A kernel in CUDA C++ that MLX compiles when it first runs (mlx::core::fast::cuda_kernel).
#pragma once

#include <mlx/array.h>
#include <mlx/fast.h>
#include <mlx/utils.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace tandem::kernels {

// Whether a CUDA GPU computes the stream, by kernels of ours where there are any.
bool is_cuda(mlx::core::Stream s);

// For measurements: MLX's kernels where ours would run. Before the first operation.
void use_mlx_kernels();

// A rank takes one of its machine's `gpus`, in turn, and sees no other: before the first word to CUDA. Where
// CUDA_VISIBLE_DEVICES is set, or there is one GPU or none, nothing changes.
void use_one_cuda_gpu(int rank, int gpus);

// Larger CUDA graphs than MLX's own choice, which ends one after a few matrices: before the first operation
// on a GPU. What the environment says of them stands. A graph holds what its operations take until all are
// done; where that is not little, as in training, `bytes` end it.
void use_large_cuda_graphs(std::uint64_t bytes = 100'000'000'000);

bool is_half(mlx::core::Dtype dtype);  // float16 or bfloat16

// What every source may use: namespace tandem with to_float(x), Vector<T, count>::load(pointer) and
// sum_of_warp(x).
extern const char* const cuda_header;

struct CudaLaunch {
  std::string name;
  std::string header, source;                // the source is the kernel's body
  std::vector<std::string> inputs, outputs;  // pointers to row-major arrays
  std::vector<std::pair<std::string, mlx::core::fast::TemplateArg>> constants;  // numbers and types
  std::tuple<int, int, int> grid, block;                                        // in threads
  bool strided = false;  // inputs are taken as they lie, with NAME_strides; else made row-major
};

// Whether a gradient is asked for, which kernels of ours have none of: MLX's operations run then.
bool has_gradient(const std::vector<mlx::core::array>& inputs);

// Kernels of one name. Each of them is described and compiled once for each `key`, which holds all that it
// depends on.
class CudaKernels {
 public:
  using Describe = std::function<CudaLaunch()>;
  std::vector<mlx::core::array> run(std::vector<int> key, const Describe& describe,
                                    const std::vector<mlx::core::array>& inputs,
                                    const std::vector<mlx::core::Shape>& shapes,
                                    const std::vector<mlx::core::Dtype>& dtypes, mlx::core::Stream s);

 private:
  std::map<std::vector<int>, std::shared_ptr<mlx::core::Primitive>> kept_;
};

inline int number_of(mlx::core::Dtype dtype) { return static_cast<int>(dtype.val()); }

}  // namespace tandem::kernels
