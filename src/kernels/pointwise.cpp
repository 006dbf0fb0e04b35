#include "kernels/pointwise.h"

#include <mlx/fast.h>
#include <mlx/ops.h>

#include <algorithm>

#include "kernels/cpu_primitive.h"
#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// Whole rows to each thread, and not so few that calling it costs more than it brings.
void parallel_rows(std::int64_t rows, std::int64_t size, const std::function<void(std::int64_t)>& row) {
  constexpr std::int64_t elements_of_a_part = 16 << 10;
  const std::int64_t at_once =
      std::max<std::int64_t>(1, elements_of_a_part / std::max<std::int64_t>(1, size));
  parallel((rows + at_once - 1) / at_once, [&](std::int64_t part) {
    for (std::int64_t r = part * at_once; r < std::min(rows, (part + 1) * at_once); ++r) row(r);
  });
}

// Inputs: weight, x and perhaps what is added to it first. Outputs: the norm, then the sum, if there is one.
std::vector<mx::array> rms_norm_by_mlx(const std::vector<mx::array>& in, float eps, mx::Stream s) {
  const auto norm = [&](const mx::array& x) {
    const mx::array rows = mx::reshape(x, {-1, static_cast<int>(in[0].size())}, s);
    return mx::reshape(mx::fast::rms_norm(rows, in[0], eps, s), x.shape(), s);
  };
  if (in.size() == 2) return {norm(in[1])};
  const mx::array sum = mx::add(in[1], in[2], s);
  return {norm(sum), sum};
}

class RmsNorm : public ReferencedPrimitive {
 public:
  RmsNorm(mx::Stream stream, float eps)
      : ReferencedPrimitive(stream,
                            [eps, stream](const auto& in) { return rms_norm_by_mlx(in, eps, stream); }),
        eps_(eps) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const bool adds = inputs.size() == 3;
    return [weight = inputs[0].data<float>(), x = inputs[1].data<float>(),
            added = adds ? inputs[2].data<float>() : nullptr, y = result_of(outputs[0]),
            sum = adds ? result_of(outputs[1]) : nullptr, size = static_cast<std::int64_t>(inputs[0].size()),
            rows = static_cast<std::int64_t>(inputs[1].size() / inputs[0].size()), eps = eps_] {
      const VectorLoops& loops = current_loops().vectors;
      parallel_rows(rows, size, [&](std::int64_t r) {
        const float* from = x + r * size;
        if (added) {
          for (std::int64_t i = r * size; i < (r + 1) * size; ++i) sum[i] = x[i] + added[i];
          from = sum + r * size;
        }
        loops.rms_norm(from, weight, size, eps, y + r * size);
      });
    };
  }
  const char* name() const override { return "TandemRmsNorm"; }

 private:
  float eps_;
};

class Add : public ReferencedPrimitive {
 public:
  explicit Add(mx::Stream stream)
      : ReferencedPrimitive(
            stream, [stream](const auto& in) { return std::vector{mx::add(in[0], in[1], stream)}; }) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [x = inputs[0].data<float>(), bias = inputs[1].data<float>(), y = result_of(outputs[0]),
            size = static_cast<std::int64_t>(inputs[1].size()),
            rows = static_cast<std::int64_t>(inputs[0].size() / inputs[1].size())] {
      parallel_rows(rows, size, [&](std::int64_t r) {
        for (std::int64_t i = 0; i < size; ++i) y[r * size + i] = x[r * size + i] + bias[i];
      });
    };
  }
  const char* name() const override { return "TandemAdd"; }
};

mx::array silu_multiply_by_mlx(const mx::array& gate, const mx::array& up, mx::Stream s) {
  return mx::multiply(mx::multiply(gate, mx::sigmoid(gate, s), s), up, s);
}

class SiluMultiply : public ReferencedPrimitive {
 public:
  explicit SiluMultiply(mx::Stream stream)
      : ReferencedPrimitive(stream, [stream](const auto& in) {
          return std::vector{silu_multiply_by_mlx(in[0], in[1], stream)};
        }) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [gate = inputs[0].data<float>(), up = inputs[1].data<float>(), y = result_of(outputs[0]),
            size = static_cast<std::int64_t>(inputs[0].shape(-1)),
            rows = static_cast<std::int64_t>(inputs[0].size() / inputs[0].shape(-1))] {
      const VectorLoops& loops = current_loops().vectors;
      parallel_rows(rows, size, [&](std::int64_t r) {
        loops.silu_multiply(gate + r * size, up + r * size, size, y + r * size);
      });
    };
  }
  const char* name() const override { return "TandemSiluMultiply"; }
};

// Inputs: cosines, sines, then the rows.
std::vector<mx::array> rotate_by_mlx(const std::vector<mx::array>& in, int head_dim, mx::Stream s) {
  std::vector<mx::array> turned;
  const int half = in[0].shape(1), tokens = in[0].shape(0);
  const mx::array c = mx::expand_dims(in[0], 1, s), sn = mx::expand_dims(in[1], 1, s);  // [T, 1, half]
  for (std::size_t i = 2; i < in.size(); ++i) {
    const int heads = in[i].shape(1) / head_dim;
    const mx::array x = mx::reshape(in[i], {tokens, heads, head_dim}, s);
    const auto part = [&](int first, int end) {
      return mx::slice(x, {0, 0, first}, {tokens, heads, end}, s);
    };
    const mx::array a = part(0, half), b = part(half, 2 * half);
    const mx::array y =
        mx::concatenate({mx::subtract(mx::multiply(a, c, s), mx::multiply(b, sn, s), s),
                         mx::add(mx::multiply(b, c, s), mx::multiply(a, sn, s), s), part(2 * half, head_dim)},
                        2, s);
    turned.push_back(mx::reshape(y, in[i].shape(), s));
  }
  return turned;
}

class Rotate : public ReferencedPrimitive {
 public:
  Rotate(mx::Stream stream, int head_dim)
      : ReferencedPrimitive(
            stream, [head_dim, stream](const auto& in) { return rotate_by_mlx(in, head_dim, stream); }),
        head_dim_(head_dim) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    struct Rows {
      const float* x;
      float* y;
      std::int64_t width;
    };
    std::vector<Rows> all;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      all.push_back({inputs[i + 2].data<float>(), result_of(outputs[i]), inputs[i + 2].shape(1)});
    }
    return [all = std::move(all), cosines = inputs[0].data<float>(), sines = inputs[1].data<float>(),
            tokens = inputs[0].shape(0), half = inputs[0].shape(1), head_dim = head_dim_] {
      const VectorLoops& loops = current_loops().vectors;
      for (const Rows& rows : all) {
        parallel_rows(tokens, rows.width, [&](std::int64_t t) {
          for (std::int64_t at = t * rows.width; at < (t + 1) * rows.width; at += head_dim) {
            loops.rotate(rows.x + at, cosines + t * half, sines + t * half, 2 * half, head_dim, rows.y + at);
          }
        });
      }
    };
  }
  const char* name() const override { return "TandemRotate"; }

 private:
  int head_dim_;
};

// Each row as a sequence of one token, so that it has a position of its own.
mx::array rotate_on_gpu(const mx::array& x, const Angles& angles, int head_dim, mx::Stream s) {
  const mx::array heads = mx::reshape(x, {x.shape(0), x.shape(1) / head_dim, 1, head_dim}, s);
  const mx::array y = mx::reshape(mx::fast::rope(heads, angles.dims, /*traditional=*/false, std::nullopt,
                                                 1.0F, angles.positions, angles.wavelengths, s),
                                  x.shape(), s);
  return angles.factor == 1 ? y : mx::multiply(y, mx::array(angles.factor, y.dtype()), s);
}

}  // namespace

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  if (stream.device == mx::Device::gpu) return rms_norm_by_mlx({weight, x}, eps, stream).front();
  return mx::array(x.shape(), mx::float32, std::make_shared<RmsNorm>(stream, eps),
                   {as_float_rows(weight, stream), as_float_rows(x, stream)});
}

SumAndNorm add_rms_norm(const mx::array& x, const mx::array& added, const mx::array& weight, float eps,
                        mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  std::vector<mx::array> outputs;
  if (stream.device == mx::Device::gpu) {
    outputs = rms_norm_by_mlx({weight, x, added}, eps, stream);
  } else {
    outputs = mx::array::make_arrays(
        {x.shape(), x.shape()}, {mx::float32, mx::float32}, std::make_shared<RmsNorm>(stream, eps),
        {as_float_rows(weight, stream), as_float_rows(x, stream), as_float_rows(added, stream)});
  }
  return {outputs[1], outputs[0]};
}

mx::array add(const mx::array& x, const mx::array& bias, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  if (stream.device == mx::Device::gpu) return mx::add(x, mx::astype(bias, x.dtype(), stream), stream);
  return mx::array(x.shape(), mx::float32, std::make_shared<Add>(stream),
                   {as_float_rows(x, stream), as_float_rows(bias, stream)});
}

mx::array silu_multiply(const mx::array& gate, const mx::array& up, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  if (stream.device == mx::Device::gpu) return silu_multiply_by_mlx(gate, up, stream);
  return mx::array(gate.shape(), mx::float32, std::make_shared<SiluMultiply>(stream),
                   {as_float_rows(gate, stream), as_float_rows(up, stream)});
}

Angles angles_at(const mx::array& positions, const mx::array& wavelengths, float factor,
                 mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  const mx::array turns =
      mx::divide(mx::expand_dims(mx::astype(positions, mx::float32, stream), 1, stream), wavelengths, stream);
  const auto scaled = [&](const mx::array& x) {
    const mx::array y = mx::multiply(x, mx::array(factor), stream);
    return stream.device == mx::Device::cpu ? as_float_rows(y, stream) : y;
  };
  return {2 * wavelengths.shape(0),      positions, wavelengths, factor, scaled(mx::cos(turns, stream)),
          scaled(mx::sin(turns, stream))};
}

std::vector<mx::array> rotate(const std::vector<mx::array>& rows, const Angles& angles, int head_dim,
                              mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  if (stream.device == mx::Device::gpu) {
    std::vector<mx::array> turned;
    for (const auto& x : rows) turned.push_back(rotate_on_gpu(x, angles, head_dim, stream));
    return turned;
  }
  std::vector<mx::array> inputs{angles.cosines, angles.sines};
  std::vector<mx::Shape> shapes;
  for (const auto& x : rows) {
    inputs.push_back(as_float_rows(x, stream));
    shapes.push_back(x.shape());
  }
  const std::vector<mx::Dtype> dtypes(rows.size(), mx::float32);
  return mx::array::make_arrays(std::move(shapes), dtypes, std::make_shared<Rotate>(stream, head_dim),
                                inputs);
}

}  // namespace tandem::kernels
