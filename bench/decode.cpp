// A step of decode on a GPU in its parts: building the graph, handing it to the GPU, waiting, reading the
// logits. Usage: bench_decode SHAPE.json 4|8|bf16 [BATCH [mlx]], one rank, random weights, prompts of 256
// tokens; "mlx": by MLX's kernels alone.
#include <fmt/format.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "base/file.h"
#include "kernels/cuda_kernel.h"
#include "models/families.h"
#include "weights/random_source.h"

namespace {

namespace mx = mlx::core;
using namespace tandem;

constexpr int prompt = 256, warm_up = 5, steps = 40;

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

// TB/s of reading and writing 2 GB, in the better of several turns.
double copy_speed() {
  constexpr int elements = 1 << 29;
  const mx::array x = mx::full({elements}, 1.0F, mx::float32);
  mx::eval(x);
  double best_s = 1e9;
  for (int i = 0; i < 5; ++i) {
    const double start = now_s();
    mx::array y = mx::add(x, mx::array(1.0F));
    mx::eval(y);
    best_s = std::min(best_s, now_s() - start);
  }
  return 2.0 * sizeof(float) * elements / best_s / 1e12;
}

models::Decoder random_model(const std::string& file, const std::string& bits) {
  auto json = read_json_file(file);
  json["torch_dtype"] = "bfloat16";
  if (bits != "bf16") json["quantization"] = {{"group_size", 64}, {"bits", std::stoi(bits)}};
  const auto config = models::parse_config(json);
  weights::RandomSource source(mx::bfloat16, bits == "bf16" ? 0 : std::stoi(bits));
  const auto shard =
      parallel::shard_of(config.sizes, {1.0}, 0, parallel::expert_split_of(1, config.divisible()));
  const parallel::Range layers{0, config.layers};
  const weights::ShardedWeights weights(source, models::shard_rules(config, source, layers), config.formats,
                                        shard, layers.begin, layers.end);
  return models::make_decoder(config, shard, weights, layers);
}

struct Times {
  std::vector<double> build, launch, total, read;
};

Times measure(const models::Decoder& model, int batch) {
  const models::Context context{mx::distributed::init(false, "any"), mx::bfloat16};
  std::vector<models::KvCache> caches(batch, models::KvCache(model.config.layers));
  Times times;
  for (int step = 0; step < warm_up + steps; ++step) {
    const int each = step == 0 ? prompt : 1;
    std::vector<models::SequenceRows> sequences;
    for (auto& cache : caches) sequences.push_back({each, &cache});
    const std::vector<int> tokens(batch * each, 7);
    const int count = static_cast<int>(tokens.size());
    const mx::array ids(tokens.data(), {count}, mx::int32);
    const double start = now_s();
    const mx::array hidden = models::forward(model, models::embed(model, ids, context), sequences, context);
    const mx::array last = mx::slice(hidden, {count - batch, 0}, {count, hidden.shape(1)});
    mx::array logits = mx::astype(models::logits(model, last, context), mx::float32);
    const double built = now_s();
    mx::async_eval(logits);
    const double launched = now_s();
    logits.wait();
    const double done = now_s();
    const std::vector<float> row(logits.data<float>(), logits.data<float>() + logits.size());
    if (step < warm_up) continue;
    times.build.push_back(built - start);
    times.launch.push_back(launched - built);
    times.total.push_back(done - start);
    times.read.push_back(now_s() - done);
  }
  return times;
}

}  // namespace

int main(int count, char** args) {
  if (count < 3 || count > 5) {
    fmt::print(stderr, "usage: bench_decode SHAPE.json 4|8|bf16 [BATCH [mlx]]\n");
    return 2;
  }
  const int batch = count > 3 ? std::stoi(args[3]) : 1;
  kernels::use_large_cuda_graphs();
  if (count > 4 && std::string(args[4]) == "mlx") kernels::use_mlx_kernels();
  mx::set_default_device(mx::Device::gpu);
  const double copy = copy_speed();
  const auto model = random_model(args[1], args[2]);
  const Times times = measure(model, batch);
  const double total = median(times.total),
               speed = static_cast<double>(models::step_bytes(model)) / total / 1e12;
  fmt::print("build {:.2f} ms, launch {:.2f} ms, total {:.2f} ms, then reading the logits {:.2f} ms\n",
             1e3 * median(times.build), 1e3 * median(times.launch), 1e3 * total, 1e3 * median(times.read));
  fmt::print("{:.1f} tok/s, weights read at {:.2f} TB/s, {:.0f} % of the copy's {:.2f} TB/s\n", batch / total,
             speed, 100 * speed / copy, copy);
}
