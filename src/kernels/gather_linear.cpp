#include "kernels/gather_linear.h"

#include <mlx/ops.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels/cpu_primitive.h"
#include "kernels/gather_by_mlx.h"
#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// The rows of one expert: which (row, choice) pairs they are, and where they stand among the sorted.
struct Share {
  int expert;
  std::int64_t first, count;
};

// The pairs by expert, in their order within each; pairs of no expert are left out.
struct Sorted {
  std::vector<std::int64_t> pairs;
  std::vector<Share> shares;
};

Sorted sort_by_expert(const std::int32_t* ids, std::int64_t pairs, int experts) {
  std::vector<std::int64_t> first(experts + 1, 0);
  const auto is_expert = [&](std::int32_t id) { return id >= 0 && id < experts; };
  for (std::int64_t i = 0; i < pairs; ++i) {
    if (is_expert(ids[i])) ++first[ids[i] + 1];
  }
  for (int e = 0; e < experts; ++e) first[e + 1] += first[e];
  Sorted sorted;
  sorted.pairs.resize(first[experts]);
  for (int e = 0; e < experts; ++e) {
    if (first[e + 1] > first[e]) sorted.shares.push_back({e, first[e], first[e + 1] - first[e]});
  }
  for (std::int64_t i = 0; i < pairs; ++i) {
    if (is_expert(ids[i])) sorted.pairs[first[ids[i]]++] = i;
  }
  return sorted;
}

// One call on a CPU.
struct Call {
  const float* x;
  const std::int32_t* ids;
  float* y;
  std::int64_t pairs;
  int choices;       // pairs of a row
  bool shares_rows;  // x has one row for all choices of a token
  std::int64_t in, out;

  const float* row_of(std::int64_t pair) const { return x + (shares_rows ? pair / choices : pair) * in; }
};

void fill_strays(const Call& call, int experts) {
  for (std::int64_t pair = 0; pair < call.pairs; ++pair) {
    if (call.ids[pair] >= 0 && call.ids[pair] < experts) continue;
    std::fill_n(call.y + pair * call.out, call.out, 0.0F);
  }
}

// Calls run(sorted, x, y) with the rows of each expert side by side, and puts what comes where it belongs.
void by_expert(const Call& call, int experts,
               const std::function<void(const Sorted&, const float*, float*)>& run) {
  const Sorted sorted = sort_by_expert(call.ids, call.pairs, experts);
  const auto count = static_cast<std::int64_t>(sorted.pairs.size());
  thread_local std::vector<float> kept_rows, kept_results;  // fresh memory would be paged in anew
  if (std::ssize(kept_rows) < count * call.in) kept_rows.resize(count * call.in);
  if (std::ssize(kept_results) < count * call.out) kept_results.resize(count * call.out);
  float *rows = kept_rows.data(), *results = kept_results.data();
  parallel_rows(count, call.in, [&](std::int64_t i) {
    std::copy_n(call.row_of(sorted.pairs[i]), call.in, rows + i * call.in);
  });
  run(sorted, rows, results);
  parallel_rows(count, call.out, [&](std::int64_t i) {
    std::copy_n(results + i * call.out, call.out, call.y + sorted.pairs[i] * call.out);
  });
  fill_strays(call, experts);
}

// Some panels of one expert.
struct Part {
  const Share* share;
  std::int64_t first, end;
};

void multiply_experts(const Call& call, const std::vector<Operand>& experts) {
  by_expert(call, static_cast<int>(experts.size()), [&](const Sorted& sorted, const float* x, float* y) {
    const PanelShape& shape = experts.front().shape;
    const PanelLoops& loops = current_loops();
    const Activation activation = activation_of(shape.format, loops);
    const std::int64_t row_bytes = prepared_bytes(activation, shape.in, shape.group);
    std::vector<std::byte> prepared(sorted.pairs.size() * row_bytes);
    parallel(static_cast<std::int64_t>(sorted.shares.size()), [&](std::int64_t i) {
      const Share& share = sorted.shares[i];
      const std::int64_t height = tile_rows(activation, loops);
      loops.prepare({x + share.first * shape.in, shape.in, share.count, shape.in, activation, shape.group,
                     prepared.data() + share.first * row_bytes},
                    0, (share.count + height - 1) / height);
    });
    // Enough parts that threads of unequal speed end together, each a long stream.
    const std::int64_t panels = panels_of(shape), shares = static_cast<std::int64_t>(sorted.shares.size());
    const std::int64_t wanted = threads() == 1 ? shares : std::max<std::int64_t>(shares, threads() * 8);
    const std::int64_t cuts = std::clamp<std::int64_t>(wanted / std::max<std::int64_t>(shares, 1), 1, panels);
    std::vector<Part> parts;
    for (const Share& share : sorted.shares) {
      for (std::int64_t c = 0; c < cuts; ++c)
        parts.push_back({&share, panels * c / cuts, panels * (c + 1) / cuts});
    }
    parallel(static_cast<std::int64_t>(parts.size()), [&](std::int64_t i) {
      const auto& [share, first, end] = parts[i];
      multiply_panels(experts[share->expert], prepared.data() + share->first * row_bytes, share->count,
                      y + share->first * shape.out, first, end);
    });
  });
}

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

// Inputs: y's gradient [T, k, out], ids, and the weight where the experts are not packed.
class GatherTransposed : public CpuPrimitive {
 public:
  GatherTransposed(mx::Stream stream, Packed packed) : CpuPrimitive(stream), packed_(std::move(packed)) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const Call call{inputs[0].data<float>(), inputs[1].data<std::int32_t>(),
                    result_of(outputs[0]),   static_cast<std::int64_t>(inputs[1].size()),
                    inputs[1].shape(1),      false,
                    inputs[0].shape(2),      outputs[0].shape(2)};
    return [call, operands = operands_of(packed_, packed_.empty() ? &inputs[2] : nullptr), packed = packed_] {
      by_expert(call, static_cast<int>(operands.size()), [&](const Sorted& sorted, const float* x, float* y) {
        for (const Share& share : sorted.shares) {
          PreparedRows prepared(x + share.first * call.in, share.count);
          multiply(turned(operands[share.expert]), prepared, y + share.first * call.out);
        }
      });
    };
  }
  const char* name() const override { return "TandemGatherTransposed"; }

 private:
  Packed packed_;
};

// Inputs: y's gradient [T, k, out], x as Call has it, ids. Output: of each expert the sum over its rows of
// the gradient times x, [E, out, in].
class GatherOuter : public CpuPrimitive {
 public:
  GatherOuter(mx::Stream stream, bool shares_rows) : CpuPrimitive(stream), shares_rows_(shares_rows) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const mx::array &dy = inputs[0], &x = inputs[1], &ids = inputs[2];
    const Call call{x.data<float>(),
                    ids.data<std::int32_t>(),
                    nullptr,
                    static_cast<std::int64_t>(ids.size()),
                    ids.shape(1),
                    shares_rows_,
                    outputs[0].shape(2),
                    dy.shape(2)};
    return [call, dy = dy.data<float>(), to = result_of(outputs[0]), experts = outputs[0].shape(0)] {
      std::fill_n(to, experts * call.out * call.in, 0.0F);
      const Sorted sorted = sort_by_expert(call.ids, call.pairs, experts);
      std::vector<float> left, right;  // of an expert's rows
      for (const Share& share : sorted.shares) {
        left.resize(call.out * share.count);
        right.resize(call.in * share.count);
        for (std::int64_t i = 0; i < share.count; ++i) {
          const std::int64_t pair = sorted.pairs[share.first + i];
          std::copy_n(dy + pair * call.out, call.out, &left[i * call.out]);
          std::copy_n(call.row_of(pair), call.in, &right[i * call.in]);
        }
        multiply_outer(left.data(), call.out, right.data(), call.in, share.count,
                       to + share.expert * call.out * call.in);
      }
    };
  }
  const char* name() const override { return "TandemGatherOuter"; }

 private:
  bool shares_rows_;
};

// Inputs: x, ids, and the weight where the experts are not packed.
class GatherLinear : public CpuPrimitive {
 public:
  GatherLinear(mx::Stream stream, Packed packed, bool shares_rows)
      : CpuPrimitive(stream), packed_(std::move(packed)), shares_rows_(shares_rows) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    std::vector<Operand> operands = operands_of(packed_, packed_.empty() ? &inputs[2] : nullptr);
    const PanelShape& shape = operands.front().shape;
    const Call call{inputs[0].data<float>(),
                    inputs[1].data<std::int32_t>(),
                    result_of(outputs[0]),
                    static_cast<std::int64_t>(inputs[1].size()),
                    inputs[1].shape(1),
                    shares_rows_,
                    shape.in,
                    shape.out};
    return [call, operands = std::move(operands), packed = packed_] { multiply_experts(call, operands); };
  }

  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums, const std::vector<mx::array>&) override {
    const mx::Stream s = stream();
    const mx::array& ids = primals[1];
    const int rows = ids.shape(0), choices = ids.shape(1);
    const mx::array dy = mx::reshape(as_float_rows(cotangents[0], s), {rows, choices, -1}, s);
    const auto by_x = [&] {
      std::vector<mx::array> inputs;
      inputs.push_back(row_major(dy, s));
      inputs.push_back(ids);
      if (packed_.empty()) inputs.push_back(primals[2]);
      const int in = packed_.empty() ? primals[2].shape(2) : static_cast<int>(packed_.front()->shape().in);
      const mx::array by_pair({rows, choices, in}, mx::float32,
                              std::make_shared<GatherTransposed>(s, packed_), inputs);
      return shares_rows_ ? mx::sum(by_pair, 1, false, s) : mx::reshape(by_pair, primals[0].shape(), s);
    };
    const auto by_weight = [&] {
      const mx::array sums(primals[2].shape(), mx::float32, std::make_shared<GatherOuter>(s, shares_rows_),
                           {row_major(dy, s), row_major(primals[0], s), ids});
      return mx::astype(sums, primals[2].dtype(), s);
    };
    std::vector<mx::array> wanted;
    for (const int argnum : argnums) {
      wanted.push_back(argnum == 0 ? by_x() : argnum == 1 ? mx::zeros_like(ids, s) : by_weight());
    }
    return wanted;
  }
  const char* name() const override { return "TandemGatherLinear"; }

 private:
  Packed packed_;
  bool shares_rows_;  // one row of x for all choices of a token
};

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
  std::vector<mx::array> inputs{as_float_rows(x, stream),
                                row_major(mx::astype(ids, mx::int32, stream), stream)};
  if (experts.packed.empty()) inputs.push_back(row_major(*experts.weight, stream));
  return mx::array({ids.shape(0), ids.shape(1), experts.out()}, mx::float32,
                   std::make_shared<GatherLinear>(stream, experts.packed, x.ndim() == 2), std::move(inputs));
}

mx::array linear_by_head(const mx::array& x, const Experts& heads, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  const int rows = x.shape(0), count = heads.count(), out = count * heads.out();
  if (x.ndim() != 2 || x.shape(1) != count * heads.in())
    throw std::invalid_argument("linear_by_head: x and the heads do not fit together");
  if (stream.device == mx::Device::cpu) {
    check_packed("linear_by_head", heads);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(rows) * count);
    for (int i = 0; i < rows * count; ++i) ids[i] = i % count;
    std::vector<mx::array> inputs;
    inputs.push_back(as_float_rows(x, stream));
    inputs.emplace_back(ids.data(), mx::Shape{rows, count}, mx::int32);
    if (heads.packed.empty()) inputs.push_back(row_major(*heads.weight, stream));
    return mx::array({rows, out}, mx::float32, std::make_shared<GatherLinear>(stream, heads.packed, false),
                     std::move(inputs));
  }
  return by_head_by_mlx(x, heads, stream);
}

}  // namespace tandem::kernels
