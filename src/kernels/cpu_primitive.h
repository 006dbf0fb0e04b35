// What the primitives of kernels/ share: they run on CPU streams alone.
#pragma once

#include <mlx/array.h>
#include <mlx/primitives.h>
#include <mlx/transforms.h>

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tandem::kernels {

class CpuPrimitive : public mlx::core::Primitive {
 public:
  using mlx::core::Primitive::Primitive;

  // The computation over memory that is there by now, row-major in and out. Runs once, on the stream's
  // thread, while the arrays live; it must not throw.
  using Work = std::function<void()>;
  virtual Work work(const std::vector<mlx::core::array>& inputs,
                    const std::vector<mlx::core::array>& outputs) const = 0;

  void eval_cpu(const std::vector<mlx::core::array>& inputs, std::vector<mlx::core::array>& outputs) override;
  void eval_gpu(const std::vector<mlx::core::array>&, std::vector<mlx::core::array>&) override {
    throw std::logic_error(std::string(name()) + " runs on CPU streams only");
  }
};

// Where a result is written.
template <typename T = float>
T* result_of(const mlx::core::array& array) {
  return const_cast<mlx::core::array&>(array).data<T>();
}

// Calls row(0) … row(rows - 1), each of `size` numbers: several to a thread where they are small, so that the
// call costs less than it brings.
void parallel_rows(std::int64_t rows, std::int64_t size, const std::function<void(std::int64_t)>& row);

// Gives the arrays memory.
void allocate(std::vector<mlx::core::array>& arrays);

// A primitive whose gradient is that of `reference`, the same computation in MLX's operations.
class ReferencedPrimitive : public CpuPrimitive {
 public:
  using Reference = std::function<std::vector<mlx::core::array>(const std::vector<mlx::core::array>&)>;
  ReferencedPrimitive(mlx::core::Stream stream, Reference reference)
      : CpuPrimitive(stream), reference_(std::move(reference)) {}

  std::vector<mlx::core::array> vjp(const std::vector<mlx::core::array>& primals,
                                    const std::vector<mlx::core::array>& cotangents,
                                    const std::vector<int>& argnums,
                                    const std::vector<mlx::core::array>&) override {
    // By the wanted ones alone: others, such as ids, may have none.
    std::vector<mlx::core::array> wanted;
    for (const int argnum : argnums) wanted.push_back(primals[argnum]);
    const auto of_wanted = [&](const std::vector<mlx::core::array>& in) {
      auto all = primals;
      for (std::size_t i = 0; i < in.size(); ++i) all[argnums[i]] = in[i];
      return reference_(all);
    };
    return mlx::core::vjp(of_wanted, wanted, cotangents).second;
  }

 private:
  Reference reference_;
};

// x in row-major memory, and as float32; without an operation where it is so already.
mlx::core::array row_major(const mlx::core::array& x, mlx::core::Stream s);
mlx::core::array as_float_rows(const mlx::core::array& x, mlx::core::Stream s);

}  // namespace tandem::kernels
