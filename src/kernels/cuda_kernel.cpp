#include "kernels/cuda_kernel.h"

#include <fmt/format.h>
#include <mlx/backend/cuda/cuda.h>
#include <stdlib.h>

#include <algorithm>

#include "base/hash.h"

namespace tandem::kernels {

namespace mx = mlx::core;

const char* const cuda_header = R"(
namespace tandem {

template <int bytes> struct Words;
template <> struct Words<2> { using Type = unsigned short; };
template <> struct Words<4> { using Type = unsigned int; };
template <> struct Words<8> { using Type = uint2; };
template <> struct Words<16> { using Type = uint4; };

// count elements of a type, by one load.
template <typename T, int count>
struct alignas(sizeof(T) * count) Vector {
  T at[count];
  static __device__ __forceinline__ Vector load(const T* from) {
    using Word = typename Words<sizeof(T) * count>::Type;
    Word word = __ldg(reinterpret_cast<const Word*>(from));
    return *reinterpret_cast<Vector*>(&word);
  }
};

__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

__device__ __forceinline__ float sum_of_warp(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffff, x, distance);
  return x;
}

}  // namespace tandem
)";

namespace {

bool& ours() {
  static bool ours = mx::cu::is_available();
  return ours;
}

}  // namespace

bool is_cuda(mx::Stream s) { return ours() && s.device == mx::Device::gpu; }

void use_mlx_kernels() { ours() = false; }

void use_one_cuda_gpu(int rank, int gpus) {
  if (gpus > 1) ::setenv("CUDA_VISIBLE_DEVICES", std::to_string(rank % gpus).c_str(), /*overwrite=*/0);
}

void use_large_cuda_graphs(std::uint64_t bytes) {
  ::setenv("MLX_MAX_OPS_PER_BUFFER", "40", /*overwrite=*/0);
  ::setenv("MLX_MAX_MB_PER_BUFFER", std::to_string(bytes / 1'000'000).c_str(), /*overwrite=*/0);
}

bool is_half(mx::Dtype dtype) { return dtype == mx::float16 || dtype == mx::bfloat16; }

bool has_gradient(const std::vector<mx::array>& inputs) {
  return std::any_of(inputs.begin(), inputs.end(), [](const mx::array& x) { return x.is_tracer(); });
}

// MLX writes and looks up a kernel's source on each call, which takes as long as the kernel; so its primitive
// is kept.
std::vector<mx::array> CudaKernels::run(std::vector<int> key, const Describe& describe,
                                        const std::vector<mx::array>& inputs,
                                        const std::vector<mx::Shape>& shapes,
                                        const std::vector<mx::Dtype>& dtypes, mx::Stream s) {
  key.push_back(s.index);
  auto& primitive = kept_[std::move(key)];
  if (!primitive) {
    const CudaLaunch launch = describe();
    // MLX finds what was compiled, on the disk too, by the name and the constants alone.
    const auto name = fmt::format("{}_{:x}", launch.name, fnv1a(launch.header + launch.source));
    const auto kernel =
        mx::fast::cuda_kernel(name, launch.inputs, launch.outputs, launch.source, launch.header,
                              /*ensure_row_contiguous=*/!launch.strided);
    primitive =
        kernel(inputs, shapes, dtypes, launch.grid, launch.block, launch.constants, std::nullopt, false, s)
            .front()
            .primitive_ptr();
  }
  return mx::array::make_arrays(shapes, dtypes, primitive, inputs);
}

}  // namespace tandem::kernels
