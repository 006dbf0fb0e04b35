// What each operation of a decode step takes on a GPU, without its host's time: bench_gpu_parts SHAPE.json
// 4|8|bf16 [BATCH], of a grouped-attention model. A chain of each is handed out while the GPU is busy with
// something long; the chain's time is what comes on top of that.
#include <fmt/format.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "base/file.h"
#include "kernels/attention.h"
#include "kernels/cuda_kernel.h"
#include "kernels/linear.h"
#include "kernels/pointwise.h"
#include "models/config.h"
#include "timing.h"

namespace {

namespace mx = mlx::core;
using namespace tandem;

constexpr int chain = 60, turns = 9, context = 256;

mx::array normal(const mx::Shape& shape, float deviation = 1) {
  mx::array x = mx::astype(mx::multiply(mx::random::normal(shape), mx::array(deviation)), mx::bfloat16);
  x.eval();
  return x;
}

kernels::Matrix matrix(int out, int in, int bits) {
  const mx::array dense = normal({out, in}, 0.02F);
  if (bits == 16) return {dense, std::nullopt, nullptr};
  auto parts = mx::quantize(dense, 64, bits);
  mx::eval(parts);
  return {parts[0], kernels::Affine{parts[1], parts[2], 64, bits}, nullptr};
}

// µs of one link of the chain x → step(x).
double measure(mx::array x, const std::function<mx::array(const mx::array&)>& step) {
  const mx::array large = normal({16384, 16384});
  const auto busy = [&] {
    mx::array y = large;
    for (int i = 0; i < 2; ++i) y = mx::matmul(y, large);
    return y;
  };
  std::vector<double> without, with;
  for (int turn = 0; turn < turns; ++turn) {
    double start = now_s();
    mx::array alone = busy();
    mx::async_eval(alone);
    mx::synchronize();
    without.push_back(now_s() - start);
    start = now_s();
    mx::array before = busy(), y = x;
    mx::async_eval(before);
    for (int i = 0; i < chain; ++i) y = step(y);
    mx::async_eval(y);
    mx::synchronize();
    with.push_back(now_s() - start);
  }
  return 1e6 * (median(with) - median(without)) / chain;
}

struct Parts {
  parallel::ModelSizes sizes;
  int bits, batch;

  static void say(const std::string& name, double us, double bytes = 0) {
    fmt::print("{:<28}{:8.1f} us", name, us);
    if (bytes > 0) fmt::print("{:8.2f} TB/s", bytes / us / 1e6);
    fmt::print("\n");
  }
  mx::array part(const mx::array& rows, int first, int end) const {
    return mx::slice(rows, {0, first}, {batch, end});
  }
  int width() const { return (sizes.query_heads + 2 * sizes.kv_heads) * sizes.head_dim; }

  // A chain goes on with `in` numbers of what came out, or with what came out and some others.
  void product(const std::string& name, int out, int in) const {
    const auto w = matrix(out, in, bits);
    const mx::array wide = normal({batch, std::max(in, out)});
    const double us = measure(part(wide, 0, in), [&](const mx::array& y) {
      const mx::array z = kernels::linear(y, w);
      return out >= in ? part(z, 0, in) : mx::concatenate({z, part(wide, out, in)}, 1);
    });
    say(name, us, static_cast<double>(w.bytes()));
  }

  void products() const {
    product("queries, keys, values", width(), sizes.hidden);
    product("attention's output", sizes.hidden, sizes.query_heads * sizes.head_dim);
    product("gate and up", 2 * sizes.ffn, sizes.hidden);
    product("down, with a concatenation", sizes.hidden, sizes.ffn);
    product("logits", sizes.vocabulary, sizes.hidden);
  }

  void pointwise() const {
    const mx::array x = normal({batch, sizes.hidden}), norm = normal({sizes.hidden});
    say("sum and norm",
        measure(x, [&](const mx::array& y) { return kernels::add_rms_norm(y, x, norm, 1e-6F).norm; }));
    const mx::array gate = normal({batch, 2 * sizes.ffn});
    say("silu", measure(part(gate, 0, sizes.ffn), [&](const mx::array& y) {
          return kernels::silu_multiply(y, part(gate, sizes.ffn, 2 * sizes.ffn));
        }));
  }

  void attention() const {
    const int dim = sizes.head_dim, queries = sizes.query_heads, kv = sizes.kv_heads;
    const mx::array rows = normal({batch, width()});
    const auto keys = part(rows, queries * dim, (queries + kv) * dim),
               values = part(rows, (queries + kv) * dim, width());
    const std::vector<float> lengths(dim / 2, 3);
    const std::vector<int> at(batch, context);
    const auto angles =
        kernels::angles_at(mx::array(at.data(), {batch}, mx::int32), mx::array(lengths.data(), {dim / 2}), 1);
    const mx::array q = part(rows, 0, queries * dim);
    say("rotate", measure(q, [&](const mx::array& y) { return kernels::rotate({y, keys}, angles, dim)[0]; }));
    std::vector<kernels::KeyValues> held(batch);
    kernels::AttentionHeads heads{{}, kv, 0.1F};
    for (int head = 0; head < queries; ++head) heads.kv_of_query.push_back(head * kv / queries);
    const auto attend = [&](const mx::array& q_rows, const mx::array& k, const mx::array& v, int tokens) {
      std::vector<kernels::AttentionRows> sequences;
      for (auto& one : held) sequences.push_back({tokens, &one});
      return kernels::attention(q_rows, k, v, heads, sequences);
    };
    const mx::array prompt = normal({batch * context, kv * dim});
    mx::eval(attend(normal({batch * context, queries * dim}), prompt, prompt, context));
    say("attention", measure(q, [&](const mx::array& y) { return attend(y, keys, values, 1); }));
  }
};

}  // namespace

int main(int count, char** args) {
  if (count < 3 || count > 4) {
    fmt::print(stderr, "usage: bench_gpu_parts SHAPE.json 4|8|bf16 [BATCH]\n");
    return 2;
  }
  kernels::use_large_cuda_graphs();
  if (!has_gpu()) return 2;
  mx::set_default_device(mx::Device::gpu);
  const int bits = std::string(args[2]) == "bf16" ? 16 : std::stoi(args[2]);
  const Parts parts{models::parse_config(read_json_file(args[1])).sizes, bits,
                    count > 3 ? std::stoi(args[3]) : 1};
  parts.products();
  parts.pointwise();
  parts.attention();
}
