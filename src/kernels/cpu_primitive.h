// What the primitives of kernels/ share: they run on CPU streams alone.
#pragma once

#include <mlx/allocator.h>
#include <mlx/array.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/primitives.h>
#include <mlx/transforms.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tandem::kernels {

class CpuPrimitive : public mlx::core::Primitive {
 public:
  using mlx::core::Primitive::Primitive;
  void eval_gpu(const std::vector<mlx::core::array>&, std::vector<mlx::core::array>&) override {
    throw std::logic_error(std::string(name()) + " runs on CPU streams only");
  }

 protected:
  // Gives the outputs their memory and has `work` run in the stream's order.
  template <typename Work>
  void dispatch(const std::vector<mlx::core::array>& inputs, std::vector<mlx::core::array>& outputs,
                Work work) {
    auto& encoder = mlx::core::cpu::get_command_encoder(stream());
    for (const auto& input : inputs) encoder.set_input_array(input);
    for (auto& output : outputs) encoder.set_output_array(output);
    encoder.dispatch(std::move(work));
  }
  static void allocate(std::vector<mlx::core::array>& outputs) {
    for (auto& output : outputs) output.set_data(mlx::core::allocator::malloc(output.nbytes()));
  }
};

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
    const auto all = mlx::core::vjp(reference_, primals, cotangents).second;
    std::vector<mlx::core::array> wanted;
    for (const int argnum : argnums) wanted.push_back(all[argnum]);
    return wanted;
  }

 private:
  Reference reference_;
};

// x as float32 in row-major memory; without an operation where it is so already.
mlx::core::array as_float_rows(const mlx::core::array& x, mlx::core::Stream s);

}  // namespace tandem::kernels
