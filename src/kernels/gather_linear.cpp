#include "kernels/gather_linear.h"

#include <mlx/ops.h>

#include <stdexcept>
#include <string>

#include "kernels/cpu_primitive.h"
#include "kernels/gather_by_mlx.h"
#include "kernels/gather_products.h"
#include "kernels/routing.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

using Packed = std::vector<std::shared_ptr<const PackedMatrix>>;

// Of packed experts, or the parts of `weight` [E, out, in].
std::vector<Operand> operands_of(const Packed& packed, const mx::array* weight) {
  std::vector<Operand> operands;
  for (const auto& matrix : packed) operands.push_back(packed_operand(*matrix));
  if (!packed.empty()) return operands;
  const auto format = dense_format(weight->dtype());
  const std::int64_t bytes = static_cast<std::int64_t>(weight->nbytes()) / weight->shape(0);
  for (int e = 0; e < weight->shape(0); ++e) {
    operands.push_back(
        dense_operand(format, weight->shape(1), weight->shape(2), weight->data<char>() + e * bytes));
  }
  return operands;
}

// Inputs: y's gradient, x, ids, and the pairs' weights where there are some; all as the GatherCall of the
// product has them. Output: of each expert the sum over its rows of the gradient times x, [E, out, in].
class GatherOuter : public CpuPrimitive {
 public:
  GatherOuter(mx::Stream stream, PerToken per_token) : CpuPrimitive(stream), per_token_(per_token) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const mx::array &dy = inputs[0], &x = inputs[1], &ids = inputs[2];
    const GatherCall call{.x = x.data<float>(),
                          .ids = ids.data<std::int32_t>(),
                          .weights = inputs.size() > 3 ? inputs[3].data<float>() : nullptr,
                          .y = result_of(dy),
                          .pairs = static_cast<std::int64_t>(ids.size()),
                          .choices = ids.shape(1),
                          .per_token = per_token_,
                          .in = outputs[0].shape(2),
                          .out = outputs[0].shape(1)};
    return [call, to = result_of(outputs[0]), experts = outputs[0].shape(0)] {
      outer_by_expert(call, experts, to);
    };
  }
  const char* name() const override { return "TandemGatherOuter"; }

 private:
  PerToken per_token_;
};

// Inputs: x and z [T, k, n], weights [T, k], where z is the gradient by weights · x. Outputs: those by x and
// by the weights.
class WeightedGradient : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [x = inputs[0].data<float>(), z = inputs[1].data<float>(), weights = inputs[2].data<float>(),
            dx = result_of(outputs[0]), dweights = result_of(outputs[1]),
            size = std::int64_t{inputs[0].shape(2)}, pairs = static_cast<std::int64_t>(inputs[2].size())] {
      parallel_rows(pairs, size, [&](std::int64_t pair) {
        const std::int64_t at = pair * size;
        dweights[pair] = current_loops().vectors.dot(x + at, z + at, size);
        for (std::int64_t i = 0; i < size; ++i) dx[at + i] = weights[pair] * z[at + i];
      });
    };
  }
  const char* name() const override { return "TandemWeightedGradient"; }
};

// Inputs: x, ids, the weights of pairs where there are some, and the experts' array where they are not
// packed.
class GatherLinear : public CpuPrimitive {
 public:
  // How pairs are multiplied; `turned`, by the experts' matrices from the other side.
  struct Kind {
    Packed packed;
    PerToken per_token;
    bool weighted, turned;
  };
  GatherLinear(mx::Stream stream, Kind kind) : CpuPrimitive(stream), kind_(std::move(kind)) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    std::vector<Operand> operands =
        operands_of(kind_.packed, kind_.packed.empty() ? &inputs.back() : nullptr);
    if (kind_.turned)
      for (Operand& operand : operands) operand = turned(operand);
    const PanelShape& shape = operands.front().shape;
    const GatherCall call{.x = inputs[0].data<float>(),
                          .ids = inputs[1].data<std::int32_t>(),
                          .weights = kind_.weighted ? inputs[2].data<float>() : nullptr,
                          .y = result_of(outputs[0]),
                          .pairs = static_cast<std::int64_t>(inputs[1].size()),
                          .choices = inputs[1].shape(1),
                          .per_token = kind_.per_token,
                          .in = shape.in,
                          .out = shape.out};
    return
        [call, operands = std::move(operands), packed = kind_.packed] { multiply_by_expert(call, operands); };
  }

  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums, const std::vector<mx::array>&) override {
    const mx::Stream s = stream();
    const mx::array dy = as_float_rows(cotangents[0], s);
    std::vector<mx::array> wanted, of_rows;
    for (const int argnum : argnums) {
      if (argnum == 0 || (kind_.weighted && argnum == 2)) {
        if (of_rows.empty()) of_rows = by_rows(primals, dy);
        wanted.push_back(of_rows[argnum == 0 ? 0 : 1]);
      } else {
        wanted.push_back(argnum == 1 ? mx::zeros_like(primals[1], s) : by_experts(primals, dy));
      }
    }
    return wanted;
  }
  const char* name() const override { return "TandemGatherLinear"; }

 private:
  // By x, and by the weights of pairs.
  std::vector<mx::array> by_rows(const std::vector<mx::array>& primals, const mx::array& dy) {
    const mx::array &x = primals[0], &ids = primals[1];
    std::vector<mx::array> inputs{dy, ids};
    if (kind_.packed.empty()) inputs.push_back(primals.back());
    const Kind other{kind_.packed, {kind_.per_token.y, kind_.per_token.x}, false, !kind_.turned};
    const mx::array dx(x.shape(), mx::float32, std::make_shared<GatherLinear>(stream(), other), inputs);
    if (!kind_.weighted) return {dx};
    return mx::array::make_arrays({x.shape(), primals[2].shape()}, {mx::float32, mx::float32},
                                  std::make_shared<WeightedGradient>(stream()),
                                  {row_major(x, stream()), dx, row_major(primals[2], stream())});
  }

  mx::array by_experts(const std::vector<mx::array>& primals, const mx::array& dy) {
    if (kind_.turned) throw std::logic_error("TandemGatherLinear: no second gradient by the experts");
    std::vector<mx::array> inputs{dy, row_major(primals[0], stream()), primals[1]};
    if (kind_.weighted) inputs.push_back(row_major(primals[2], stream()));
    const mx::array& experts = primals.back();
    const mx::array sums(experts.shape(), mx::float32,
                         std::make_shared<GatherOuter>(stream(), kind_.per_token), std::move(inputs));
    return mx::astype(sums, experts.dtype(), stream());
  }

  Kind kind_;
};

mx::array gather_on_cpu(mx::Shape shape, const mx::array& x, const mx::array& ids,
                        const std::optional<mx::array>& weights, const Experts& experts, PerToken per_token,
                        mx::Stream s) {
  std::vector<mx::array> inputs{as_float_rows(x, s), row_major(mx::astype(ids, mx::int32, s), s)};
  if (weights) inputs.push_back(as_float_rows(*weights, s));
  if (experts.packed.empty()) inputs.push_back(row_major(*experts.weight, s));
  const GatherLinear::Kind kind{experts.packed, per_token, weights.has_value(), /*turned=*/false};
  return mx::array(std::move(shape), mx::float32, std::make_shared<GatherLinear>(s, kind), std::move(inputs));
}

void check_packed(const char* what, const Experts& experts) {
  if (!experts.affine) return;
  throw std::invalid_argument(std::string(what) + ": quantised matrices must be packed for a CPU stream");
}

}  // namespace

int Experts::count() const { return packed.empty() ? weight->shape(0) : static_cast<int>(packed.size()); }
int Experts::out() const {
  return packed.empty() ? weight->shape(1) : static_cast<int>(packed.front()->shape().out);
}
int Experts::in() const {
  if (!packed.empty()) return static_cast<int>(packed.front()->shape().in);
  return affine ? weight->shape(2) * 32 / affine->bits : weight->shape(2);
}

Experts pack(const Experts& experts) {
  const mx::Stream cpu = mx::default_stream(mx::Device::cpu);
  Experts packed;
  for (int e = 0; e < experts.count(); ++e) {
    const auto one = [&](const mx::array& all) {
      return mx::squeeze(mx::slice(all, {e, 0, 0}, {e + 1, all.shape(1), all.shape(2)}, cpu), 0, cpu);
    };
    Matrix matrix{one(*experts.weight), std::nullopt, nullptr};
    if (experts.affine) {
      const Affine& a = *experts.affine;
      matrix.affine = {one(a.scales), one(a.biases), a.group, a.bits};
    }
    packed.packed.push_back(pack(matrix).packed);
  }
  return packed;
}

Experts experts_of(const std::vector<Matrix>& packed) {
  Experts experts;
  for (const auto& matrix : packed) experts.packed.push_back(matrix.packed);
  return experts;
}

mx::array gather_linear(const mx::array& x, const Experts& experts, const mx::array& ids,
                        mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  const bool fits = ids.ndim() == 2 && (x.ndim() == 2 || (x.ndim() == 3 && x.shape(1) == ids.shape(1))) &&
                    x.shape(0) == ids.shape(0) && x.shape(-1) == experts.in();
  if (!fits) throw std::invalid_argument("gather_linear: x, ids and experts do not fit together");
  if (stream.device == mx::Device::gpu) return gather_by_mlx(x, experts, ids, stream);
  check_packed("gather_linear", experts);
  return gather_on_cpu({ids.shape(0), ids.shape(1), experts.out()}, x, ids, std::nullopt, experts,
                       {.x = x.ndim() == 2, .y = false}, stream);
}

mx::array gather_linear_sum(const mx::array& x, const mx::array& weights, const Experts& experts,
                            const mx::array& ids, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  const bool fits = x.ndim() == 3 && ids.shape() == mx::Shape{x.shape(0), x.shape(1)} &&
                    weights.shape() == ids.shape() && x.shape(2) == experts.in();
  if (!fits)
    throw std::invalid_argument("gather_linear_sum: x, weights, ids and experts do not fit together");
  if (stream.device == mx::Device::gpu)
    return weighted_sum(gather_by_mlx(x, experts, ids, stream), weights, stream);
  check_packed("gather_linear_sum", experts);
  return gather_on_cpu({ids.shape(0), experts.out()}, x, ids, weights, experts, {.x = false, .y = true},
                       stream);
}

mx::array linear_by_head(const mx::array& x, const Experts& heads, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  const int rows = x.shape(0), count = heads.count();
  if (x.ndim() != 2 || x.shape(1) != count * heads.in())
    throw std::invalid_argument("linear_by_head: x and the heads do not fit together");
  if (stream.device == mx::Device::gpu) return by_head_by_mlx(x, heads, stream);
  check_packed("linear_by_head", heads);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(rows) * count);
  for (int i = 0; i < rows * count; ++i) ids[i] = i % count;
  return gather_on_cpu({rows, count * heads.out()}, x,
                       mx::array(ids.data(), mx::Shape{rows, count}, mx::int32), std::nullopt, heads,
                       {.x = false, .y = false}, stream);
}

}  // namespace tandem::kernels
