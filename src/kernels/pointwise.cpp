#include "kernels/pointwise.h"

#include <mlx/compile.h>
#include <mlx/fast.h>
#include <mlx/ops.h>

#include <algorithm>
#include <functional>
#include <map>
#include <stdexcept>

#include "kernels/cpu_primitive.h"
#include "kernels/cuda_pointwise.h"
#include "kernels/pointwise_gradient.h"
#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

void need(bool fits, const char* otherwise) {
  if (!fits) throw std::invalid_argument(otherwise);
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

class RmsNorm : public CpuPrimitive {
 public:
  RmsNorm(mx::Stream stream, float eps) : CpuPrimitive(stream), eps_(eps) {}

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

  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override {
    const bool adds = primals.size() == 3;
    const bool by_weight = std::find(argnums.begin(), argnums.end(), 0) != argnums.end();
    const auto found = rms_norm_gradients(adds ? outputs[1] : primals[1], primals[0], cotangents[0], eps_,
                                          by_weight, stream());
    const mx::array by_x = adds ? mx::add(found.by_x, cotangents[1], stream()) : found.by_x;
    std::vector<mx::array> wanted;
    for (const int argnum : argnums) wanted.push_back(argnum == 0 ? *found.by_weight : by_x);
    return wanted;
  }

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

class SiluMultiply : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;

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

  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums, const std::vector<mx::array>&) override {
    const auto both = silu_multiply_gradients(primals[0], primals[1], cotangents[0], stream());
    std::vector<mx::array> wanted;
    for (const int argnum : argnums) wanted.push_back(both[argnum]);
    return wanted;
  }
};

struct Turn {
  int head_dim;
  bool pairs;
};

// a and b, turned against each other by the cosines and sines.
std::pair<mx::array, mx::array> turned(const mx::array& a, const mx::array& b, const mx::array& cosines,
                                       const mx::array& sines, mx::Stream s) {
  return {mx::subtract(mx::multiply(a, cosines, s), mx::multiply(b, sines, s), s),
          mx::add(mx::multiply(b, cosines, s), mx::multiply(a, sines, s), s)};
}

// Inputs: cosines, sines, then the rows.
std::vector<mx::array> rotate_by_mlx(const std::vector<mx::array>& in, const Turn& turn, mx::Stream s) {
  std::vector<mx::array> all;
  const int head_dim = turn.head_dim, half = in[0].shape(1), tokens = in[0].shape(0);
  const mx::array c = mx::expand_dims(in[0], 1, s), sn = mx::expand_dims(in[1], 1, s);  // [T, 1, half]
  for (std::size_t i = 2; i < in.size(); ++i) {
    const int heads = in[i].shape(1) / head_dim;
    const mx::array x = mx::reshape(in[i], {tokens, heads, head_dim}, s);
    const auto part = [&](int first, int end) {
      return mx::slice(x, {0, 0, first}, {tokens, heads, end}, s);
    };
    std::vector<mx::array> parts;
    if (turn.pairs) {
      const mx::array pairs = mx::reshape(part(0, 2 * half), {tokens, heads, half, 2}, s);
      const auto one = [&](int index) { return mx::take(pairs, index, 3, s); };
      const auto [a, b] = turned(one(0), one(1), c, sn, s);
      parts = {mx::reshape(mx::stack({a, b}, 3, s), {tokens, heads, 2 * half}, s)};
    } else {
      const auto [a, b] = turned(part(0, half), part(half, 2 * half), c, sn, s);
      parts = {a, b};
    }
    parts.push_back(part(2 * half, head_dim));
    all.push_back(mx::reshape(mx::concatenate(parts, 2, s), in[i].shape(), s));
  }
  return all;
}

// x [dims] and what lies past it, of one head.
void rotate_pairs(const float* x, const float* cosines, const float* sines, int dims, int size, float* y) {
  for (int i = 0; i < dims / 2; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    y[2 * i] = a * cosines[i] - b * sines[i];
    y[2 * i + 1] = b * cosines[i] + a * sines[i];
  }
  std::copy(x + dims, x + size, y + dims);
}

class Rotate : public ReferencedPrimitive {
 public:
  Rotate(mx::Stream stream, const Turn& turn)
      : ReferencedPrimitive(stream,
                            [turn, stream](const auto& in) { return rotate_by_mlx(in, turn, stream); }),
        turn_(turn) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    struct Rows {
      const float* x;
      float* y;
      std::int64_t width;
    };
    std::vector<Rows> all;
    for (std::size_t i = 0; i < outputs.size(); ++i)
      all.push_back({inputs[i + 2].data<float>(), result_of(outputs[i]), inputs[i + 2].shape(1)});
    return [all = std::move(all), cosines = inputs[0].data<float>(), sines = inputs[1].data<float>(),
            tokens = inputs[0].shape(0), half = inputs[0].shape(1), head_dim = turn_.head_dim,
            rotate = turn_.pairs ? rotate_pairs : current_loops().vectors.rotate] {
      for (const Rows& rows : all) {
        parallel_rows(tokens, rows.width, [&](std::int64_t t) {
          for (std::int64_t at = t * rows.width; at < (t + 1) * rows.width; at += head_dim)
            rotate(rows.x + at, cosines + t * half, sines + t * half, 2 * half, head_dim, rows.y + at);
        });
      }
    };
  }
  const char* name() const override { return "TandemRotate"; }

  // By the rows: turned back.
  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override {
    const mx::Stream s = stream();
    if (std::any_of(argnums.begin(), argnums.end(), [](int argnum) { return argnum < 2; }))
      return ReferencedPrimitive::vjp(primals, cotangents, argnums, outputs);
    std::vector<mx::array> inputs{primals[0], as_float_rows(mx::negative(primals[1], s), s)};
    std::vector<mx::Shape> shapes;
    for (const int argnum : argnums) {
      inputs.push_back(as_float_rows(cotangents[argnum - 2], s));
      shapes.push_back(primals[argnum].shape());
    }
    return mx::array::make_arrays(shapes, std::vector(shapes.size(), mx::float32),
                                  std::make_shared<Rotate>(s, turn_), inputs);
  }

 private:
  Turn turn_;
};

struct HeadPart {
  int head_dim, first, end;
};

mx::array head_part_by_mlx(const mx::array& x, const HeadPart& part, mx::Stream s) {
  const int tokens = x.shape(0), heads = x.shape(1) / part.head_dim;
  const mx::array all = mx::reshape(x, {tokens, heads, part.head_dim}, s);
  return mx::reshape(mx::slice(all, {0, 0, part.first}, {tokens, heads, part.end}, s),
                     {tokens, heads * (part.end - part.first)}, s);
}

class TakeHeadPart : public ReferencedPrimitive {
 public:
  TakeHeadPart(mx::Stream stream, const HeadPart& part)
      : ReferencedPrimitive(
            stream,
            [part, stream](const auto& in) { return std::vector{head_part_by_mlx(in[0], part, stream)}; }),
        part_(part) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [part = part_, x = inputs[0].data<float>(), y = result_of(outputs[0]), rows = inputs[0].shape(0),
            heads = inputs[0].shape(1) / part_.head_dim] {
      const int size = part.end - part.first;
      parallel_rows(rows, std::int64_t{heads} * size, [&](std::int64_t r) {
        for (std::int64_t h = r * heads; h < (r + 1) * heads; ++h)
          std::copy_n(x + h * part.head_dim + part.first, size, y + h * size);
      });
    };
  }
  const char* name() const override { return "TandemHeadPart"; }

 private:
  HeadPart part_;
};

mx::array join_heads_by_mlx(const std::vector<mx::array>& in, int a_dim, int b_dim, mx::Stream s) {
  const int tokens = in[0].shape(0), heads = in[0].shape(1) / a_dim;
  const mx::array both = mx::concatenate(
      {mx::reshape(in[0], {tokens, heads, a_dim}, s), mx::reshape(in[1], {tokens, heads, b_dim}, s)}, 2, s);
  return mx::reshape(both, {tokens, heads * (a_dim + b_dim)}, s);
}

class JoinHeads : public ReferencedPrimitive {
 public:
  JoinHeads(mx::Stream stream, int a_dim, int b_dim)
      : ReferencedPrimitive(stream,
                            [a_dim, b_dim, stream](const auto& in) {
                              return std::vector{join_heads_by_mlx(in, a_dim, b_dim, stream)};
                            }),
        a_dim_(a_dim),
        b_dim_(b_dim) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [a = inputs[0].data<float>(), b = inputs[1].data<float>(), y = result_of(outputs[0]),
            rows = inputs[0].shape(0), heads = inputs[0].shape(1) / a_dim_, a_dim = a_dim_, b_dim = b_dim_] {
      parallel_rows(rows, std::int64_t{heads} * (a_dim + b_dim), [&](std::int64_t r) {
        for (std::int64_t h = r * heads; h < (r + 1) * heads; ++h) {
          std::copy_n(a + h * a_dim, a_dim, y + h * (a_dim + b_dim));
          std::copy_n(b + h * b_dim, b_dim, y + h * (a_dim + b_dim) + a_dim);
        }
      });
    };
  }
  const char* name() const override { return "TandemJoinHeads"; }

 private:
  int a_dim_, b_dim_;
};

bool are_rows_for(const mx::array& weight, const mx::array& x) {
  return weight.ndim() == 1 && weight.size() > 0 && x.ndim() > 0 && x.shape(-1) % weight.shape(0) == 0;
}

// Whether x is [T, heads * head_dim].
bool has_heads(const mx::array& x, int head_dim) {
  return x.ndim() == 2 && head_dim > 0 && x.shape(1) % head_dim == 0;
}

// Each row as a sequence of one token, so that it has a position of its own.
mx::array rotate_on_gpu(const mx::array& x, const Angles& angles, int head_dim, mx::Stream s) {
  // MLX 0.32.4 asks CUDA for more blocks than it allows along rows and heads, and for few dims for more
  // threads.
  constexpr int few_dims = 32, most_threads = 64, most_blocks = 65535;
  const int most_rows = angles.dims < few_dims ? most_threads : most_blocks / (x.shape(1) / head_dim);
  if (const int rows = x.shape(0); rows > most_rows) {
    std::vector<mx::array> parts;
    for (int first = 0; first < rows; first += most_rows) {
      const int end = std::min(rows, first + most_rows);
      Angles own = angles;
      own.positions = mx::slice(angles.positions, {first}, {end}, s);
      parts.push_back(rotate_on_gpu(mx::slice(x, {first, 0}, {end, x.shape(1)}, s), own, head_dim, s));
    }
    return mx::concatenate(parts, 0, s);
  }
  const mx::array heads = mx::reshape(x, {x.shape(0), x.shape(1) / head_dim, 1, head_dim}, s);
  const mx::array y = mx::reshape(mx::fast::rope(heads, angles.dims, angles.pairs, std::nullopt, 1.0F,
                                                 angles.positions, angles.wavelengths, s),
                                  x.shape(), s);
  return angles.factor == 1 ? y : mx::multiply(y, mx::array(angles.factor, y.dtype()), s);
}

}  // namespace

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  need(are_rows_for(weight, x), "rms_norm: x is no rows of the weight's length");
  if (stream.device == mx::Device::gpu) return rms_norm_by_mlx({weight, x}, eps, stream).front();
  return mx::array(x.shape(), mx::float32, std::make_shared<RmsNorm>(stream, eps),
                   {as_float_rows(weight, stream), as_float_rows(x, stream)});
}

SumAndNorm add_rms_norm(const mx::array& x, const mx::array& added, const mx::array& weight, float eps,
                        mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  need(are_rows_for(weight, x) && added.shape() == x.shape(),
       "add_rms_norm: x, what is added and the weight do not fit together");
  if (auto both = add_rms_norm_on_cuda(x, added, weight, eps, stream)) return *both;
  const auto outputs =
      stream.device == mx::Device::gpu
          ? rms_norm_by_mlx({weight, x, added}, eps, stream)
          : mx::array::make_arrays(
                {x.shape(), x.shape()}, {mx::float32, mx::float32}, std::make_shared<RmsNorm>(stream, eps),
                {as_float_rows(weight, stream), as_float_rows(x, stream), as_float_rows(added, stream)});
  return {outputs[1], outputs[0]};
}

mx::array add(const mx::array& x, const mx::array& bias, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  need(bias.ndim() > 0 && bias.ndim() <= x.ndim() &&
           std::equal(bias.shape().rbegin(), bias.shape().rend(), x.shape().rbegin()),
       "add: the bias has other axes than x");
  if (stream.device == mx::Device::gpu) return mx::add(x, mx::astype(bias, x.dtype(), stream), stream);
  return mx::array(x.shape(), mx::float32, std::make_shared<Add>(stream),
                   {as_float_rows(x, stream), as_float_rows(bias, stream)});
}

mx::array silu_multiply(const mx::array& gate, const mx::array& up, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  need(gate.ndim() > 0 && gate.shape() == up.shape(), "silu_multiply: gate and up differ in shape");
  if (stream.device == mx::Device::gpu) {
    using Arrays = std::vector<mx::array>;
    thread_local std::map<int, std::function<Arrays(const Arrays&)>> compiled;  // by stream
    auto& one_pass = compiled[stream.index];
    const auto by_mlx = [stream](const Arrays& in) {
      return Arrays{silu_multiply_by_mlx(in[0], in[1], stream)};
    };
    if (!one_pass) one_pass = mx::compile(by_mlx, /*shapeless=*/true);
    return one_pass({gate, up}).front();
  }
  return mx::array(gate.shape(), mx::float32, std::make_shared<SiluMultiply>(stream),
                   {as_float_rows(gate, stream), as_float_rows(up, stream)});
}

Angles angles_at(const mx::array& positions, const mx::array& wavelengths, float factor, bool pairs,
                 mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  const mx::array turns =
      mx::divide(mx::expand_dims(mx::astype(positions, mx::float32, stream), 1, stream), wavelengths, stream);
  const auto scaled = [&](const mx::array& x) {
    const mx::array y = mx::multiply(x, mx::array(factor), stream);
    return stream.device == mx::Device::cpu ? as_float_rows(y, stream) : y;
  };
  return {
      2 * wavelengths.shape(0),      positions, wavelengths, factor, pairs, scaled(mx::cos(turns, stream)),
      scaled(mx::sin(turns, stream))};
}

std::vector<mx::array> rotate(const std::vector<mx::array>& rows, const Angles& angles, int head_dim,
                              mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  const mx::Shape turns{angles.positions.shape(0), angles.dims / 2};
  need(angles.cosines.shape() == turns && angles.sines.shape() == turns && angles.dims <= head_dim,
       "rotate: the angles are not those of the heads");
  for (const auto& x : rows)
    need(has_heads(x, head_dim) && x.shape(0) == turns[0], "rotate: rows and angles do not fit together");
  if (stream.device == mx::Device::gpu) {
    if (auto turned = rotate_on_cuda(rows, angles, head_dim, stream)) return *turned;
    std::vector<mx::array> all;
    for (const auto& x : rows) all.push_back(rotate_on_gpu(x, angles, head_dim, stream));
    return all;
  }
  std::vector<mx::array> inputs{angles.cosines, angles.sines};
  std::vector<mx::Shape> shapes;
  for (const auto& x : rows) {
    inputs.push_back(as_float_rows(x, stream));
    shapes.push_back(x.shape());
  }
  return mx::array::make_arrays(std::move(shapes), std::vector(rows.size(), mx::float32),
                                std::make_shared<Rotate>(stream, Turn{head_dim, angles.pairs}), inputs);
}

mx::array head_part(const mx::array& x, int head_dim, int first, int end, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  need(has_heads(x, head_dim) && 0 <= first && first <= end && end <= head_dim,
       "head_part: x has no such part of a head");
  if (first == 0 && end == head_dim) return x;
  const HeadPart part{head_dim, first, end};
  if (stream.device == mx::Device::gpu) return head_part_by_mlx(x, part, stream);
  return mx::array({x.shape(0), x.shape(1) / head_dim * (end - first)}, mx::float32,
                   std::make_shared<TakeHeadPart>(stream, part), {as_float_rows(x, stream)});
}

mx::array join_heads(const mx::array& a, int a_dim, const mx::array& b, int b_dim, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  need(has_heads(a, a_dim) && has_heads(b, b_dim) && a.shape(0) == b.shape(0) &&
           a.shape(1) / a_dim == b.shape(1) / b_dim,
       "join_heads: a and b differ in rows or heads");
  if (stream.device == mx::Device::gpu) return join_heads_by_mlx({a, b}, a_dim, b_dim, stream);
  return mx::array({a.shape(0), a.shape(1) + b.shape(1)}, mx::float32,
                   std::make_shared<JoinHeads>(stream, a_dim, b_dim),
                   {as_float_rows(a, stream), as_float_rows(b, stream)});
}

}  // namespace tandem::kernels
