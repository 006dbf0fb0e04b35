// What each operation of a decode step takes on a GPU, without its host's time: bench_gpu_parts SHAPE.json
// 4|8|bf16 [BATCH], of a grouped-attention model. A chain of each is handed out while the GPU is busy with
// something long; the chain's time is what comes on top of that.
#include <fmt/format.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "base/file.h"
#include "kernels/attention.h"
#include "kernels/cuda_kernel.h"
#include "kernels/linear.h"
#include "kernels/pointwise.h"
#include "models/config.h"

namespace {

namespace mx = mlx::core;
using namespace tandem;

constexpr int chain = 60, turns = 9, context = 256;

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

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

}  // namespace

int main(int count, char** args) {
  if (count < 3 || count > 4) {
    fmt::print(stderr, "usage: bench_gpu_parts SHAPE.json 4|8|bf16 [BATCH]\n");
    return 2;
  }
  kernels::use_large_cuda_graphs();
  mx::set_default_device(mx::Device::gpu);
  const auto config = models::parse_config(read_json_file(args[1]));
  const int bits = std::string(args[2]) == "bf16" ? 16 : std::stoi(args[2]),
            batch = count > 3 ? std::stoi(args[3]) : 1;
  const auto& sizes = config.sizes;
  const int hidden = sizes.hidden, dim = sizes.head_dim, queries = sizes.query_heads, kv = sizes.kv_heads;
  const int width = (queries + 2 * kv) * dim;
  const mx::array x = normal({batch, hidden});
  const auto part = [&](const mx::array& y, int size) { return mx::slice(y, {0, 0}, {batch, size}); };
  const auto say = [](const std::string& name, double us, double bytes) {
    fmt::print("{:<28}{:8.1f} us", name, us);
    if (bytes > 0) fmt::print("{:8.2f} TB/s", bytes / us / 1e6);
    fmt::print("\n");
  };
  const auto product = [&](const std::string& name, int out, int in) {
    const auto w = matrix(out, in, bits);
    // What makes `in` numbers of what comes in, or of `out` numbers what goes on.
    const mx::array wide = normal({batch, std::max(in, out)});
    say(name,
        measure(part(wide, in),
                [&](const mx::array& y) {
                  const mx::array z = kernels::linear(y, w);
                  return out >= in ? part(z, in) : mx::concatenate({z, part(wide, in - out)}, 1);
                }),
        static_cast<double>(w.bytes()));
  };
  product("queries, keys, values", width, hidden);
  product("attention's output", hidden, queries * dim);
  product("gate and up", 2 * sizes.ffn, hidden);
  product("down, with a concatenation", hidden, sizes.ffn);
  product("logits", sizes.vocabulary, hidden);
  const mx::array norm = normal({hidden});
  say("sum and norm",
      measure(x, [&](const mx::array& y) { return kernels::add_rms_norm(y, x, norm, 1e-6F).norm; }), 0);
  const mx::array gate = normal({batch, 2 * sizes.ffn});
  say("silu",
      measure(part(gate, sizes.ffn),
              [&](const mx::array& y) { return kernels::silu_multiply(y, part(gate, sizes.ffn)); }),
      0);
  std::vector<float> lengths(dim / 2, 3);
  const std::vector<int> at(batch, context);
  const auto angles =
      kernels::angles_at(mx::array(at.data(), {batch}, mx::int32), mx::array(lengths.data(), {dim / 2}), 1);
  const mx::array rows = normal({batch, width});
  const auto keys = mx::slice(rows, {0, queries * dim}, {batch, (queries + kv) * dim});
  const auto values = mx::slice(rows, {0, (queries + kv) * dim}, {batch, width});
  say("rotate",
      measure(part(rows, queries * dim),
              [&](const mx::array& y) {
                return kernels::rotate({y, keys}, angles, dim)[0];
              }),
      0);
  std::vector<kernels::KeyValues> held(batch);
  kernels::AttentionHeads heads{{}, kv, 0.1F};
  for (int head = 0; head < queries; ++head) heads.kv_of_query.push_back(head * kv / queries);
  const auto attend = [&](const mx::array& q, const mx::array& k, const mx::array& v, int tokens) {
    std::vector<kernels::AttentionRows> sequences;
    for (auto& one : held) sequences.push_back({tokens, &one});
    return kernels::attention(q, k, v, heads, sequences);
  };
  mx::eval(attend(normal({batch * context, queries * dim}), normal({batch * context, kv * dim}),
                  normal({batch * context, kv * dim}), context));
  say("attention",
      measure(part(rows, queries * dim),
              [&](const mx::array& y) { return attend(y, mx::contiguous(keys), values, 1); }),
      0);
}
