#include "kernels/attention_gradient.h"

#include <mlx/ops.h>

#include <algorithm>
#include <limits>

#include "kernels/cpu_primitive.h"
#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

constexpr int rows_at_once = 64;  // (token, query head) pairs: their scores stay in the second-level cache
constexpr int fewest_tasks = 8;

int whole_panels(int count) { return (count + panel_outputs - 1) / panel_outputs * panel_outputs; }

// What every task reads and writes; rows of all heads of a token lie side by side.
struct Inputs {
  const float *q, *k, *v, *y, *dy;
  float *dq, *dk, *dv;
  int query_heads, kv_heads, key_dim, value_dim;
  float scale;
  int window;
  bool values_in_keys;
};

// Some query heads of one key/value head over one sequence.
struct Task {
  int first_row, tokens;
  int kv_head;
  std::vector<int> queries;
  std::size_t sums;  // where its part of the keys' gradient starts, then that of the values'
};

// [rows][width] in panels of 32 columns: [even(rows)][32] each.
void column_panels(const float* x, int rows, int width, std::vector<float>& to) {
  const auto height = static_cast<std::size_t>(even(rows));
  to.resize(height * static_cast<std::size_t>(whole_panels(width)));
  pack_columns(x, Format::f32, rows, width, 0, whole_panels(width) / panel_outputs, to.data());
}

// y = a product of prepared rows with panels, `apart` floats from each other, or is added to y.
struct Product {
  int out, in;
  const float* panels;
  std::size_t apart;
  const std::vector<std::byte>& rows;
  int count;
  float* y;
  std::int64_t stride;
  bool adds = false;
};
void multiply(const Product& p) {
  const PanelShape shape{p.out, p.in, Format::f32, ScaleType::f32, 0};
  current_loops().multiply(
      {shape, reinterpret_cast<const std::byte*>(p.panels),
       static_cast<std::int64_t>(p.apart * sizeof(float)), p.rows.data(), p.y, p.stride, p.count, p.adds},
      0, panels_of(shape));
}

// Kept by a thread from task to task.
struct Scratch {
  std::vector<float> keys, values;          // of the head, a row a position
  std::vector<float> key_rows, value_rows;  // in panels of 32 positions
  std::vector<float> key_columns, columns;  // in panels of 32 numbers
  std::vector<float> queries, given;        // q and dy of some rows
  std::vector<float> weights, slopes, dq;   // of those: scores after the softmax, the gradient by scores
  std::vector<std::byte> prepared;
};

class HeadGradient {
 public:
  HeadGradient(const Inputs& in, const Task& task, float* sums, Scratch& scratch)
      : in_(in),
        task_(task),
        key_sums_(sums),
        value_sums_(in.values_in_keys ? sums : sums + static_cast<std::ptrdiff_t>(task.tokens) * in.key_dim),
        value_stride_(in.values_in_keys ? in.key_dim : in.value_dim),
        s_(scratch) {
    std::fill(key_sums_, value_sums_ + static_cast<std::ptrdiff_t>(task.tokens) * value_stride_, 0.0F);
    const int value_width = in.values_in_keys ? in.key_dim : in.value_dim;
    const float* values = in.values_in_keys ? in.k : in.v;
    s_.keys.resize(static_cast<std::size_t>(task.tokens) * in.key_dim);
    s_.values.resize(static_cast<std::size_t>(task.tokens) * in.value_dim);
    for (std::ptrdiff_t t = 0; t < task.tokens; ++t) {
      const std::ptrdiff_t row = (task.first_row + t) * in.kv_heads + task.kv_head;
      std::copy_n(in.k + row * in.key_dim, in.key_dim, s_.keys.data() + t * in.key_dim);
      std::copy_n(values + row * value_width, in.value_dim, s_.values.data() + t * in.value_dim);
    }
    row_panels(s_.keys, in.key_dim, s_.key_rows);
    row_panels(s_.values, in.value_dim, s_.value_rows);
    column_panels(s_.keys.data(), task.tokens, in.key_dim, s_.key_columns);
  }

  void run() {
    const int at_once = std::max(1, rows_at_once / static_cast<int>(task_.queries.size()));
    for (int first = 0; first < task_.tokens; first += at_once)
      add(first, std::min(task_.tokens, first + at_once));
  }

 private:
  // Rows of the head in panels of 32 positions: [even(width)][32] each.
  void row_panels(const std::vector<float>& x, int width, std::vector<float>& to) const {
    const PanelShape shape{task_.tokens, width, Format::f32, ScaleType::f32, 0};
    to.assign(static_cast<std::size_t>(panels_of(shape) * panel_bytes(shape)) / sizeof(float), 0);
    for (std::int64_t p = 0; p < panels_of(shape); ++p)
      pack_panel(x.data(), shape, p, reinterpret_cast<std::byte*>(to.data()) + p * panel_bytes(shape));
  }

  // x [rows][stride], of which `width` numbers each are multiplied.
  void prepare(const float* x, int rows, int width, int stride) {
    const auto& loops = current_loops();
    s_.prepared.resize(static_cast<std::size_t>(rows * prepared_bytes(Activation::f32, width, 0)));
    loops.prepare({x, stride, rows, width, Activation::f32, 0, s_.prepared.data()}, 0,
                  (rows + loops.dense_rows - 1) / loops.dense_rows);
  }

  // Where in q and dy a row's head starts, in heads.
  std::ptrdiff_t head_index(int first, int row) const {
    const int group = static_cast<int>(task_.queries.size());
    return static_cast<std::ptrdiff_t>(task_.first_row + first + row / group) * in_.query_heads +
           task_.queries[row % group];
  }

  void gather(const float* x, int first, int rows, int width, std::vector<float>& to) const {
    to.resize(static_cast<std::size_t>(rows) * width);
    for (int row = 0; row < rows; ++row)
      std::copy_n(x + head_index(first, row) * width, width,
                  to.data() + static_cast<std::ptrdiff_t>(row) * width);
  }

  // y [rows][padded] = x [rows][width] times the `padded` positions from `base` on.
  void by_positions(const std::vector<float>& x, const std::vector<float>& panels, int width, int rows,
                    int base, int padded, std::vector<float>& y) {
    prepare(x.data(), rows, width, width);
    y.resize(static_cast<std::size_t>(rows) * padded);
    const auto apart = static_cast<std::size_t>(even(width)) * panel_outputs;
    multiply({padded, width, panels.data() + base / panel_outputs * apart, apart, s_.prepared, rows, y.data(),
              padded});
  }

  // The row's scores become weights, and what the gradient is by them the gradient by the scores.
  void slope(int first, int row, int base, int padded) {
    const int position = first + row / static_cast<int>(task_.queries.size());
    const int seen = (in_.window > 0 ? std::max(0, position + 1 - in_.window) : 0) - base;
    float* weights = s_.weights.data() + static_cast<std::ptrdiff_t>(row) * padded;
    float* slopes = s_.slopes.data() + static_cast<std::ptrdiff_t>(row) * padded;
    Softmax state{-std::numeric_limits<float>::infinity(), 0};
    current_loops().vectors.softmax(weights, seen, position + 1 - base, padded, in_.scale, state);
    const float* y = in_.y + head_index(first, row) * in_.value_dim;
    const float* dy = s_.given.data() + static_cast<std::ptrdiff_t>(row) * in_.value_dim;
    float mean = 0;
    for (int d = 0; d < in_.value_dim; ++d) mean += y[d] * dy[d];
    const float inverse = 1 / state.sum;
    for (int i = 0; i < padded; ++i) {
      weights[i] *= inverse;
      slopes[i] = weights[i] * (slopes[i] - mean) * in_.scale;
    }
  }

  // sums [keys][stride] += the columns of `factors` times x [rows][width].
  void add_by_keys(const std::vector<float>& factors, const std::vector<float>& x, int width, int rows,
                   int keys, int padded, float* sums, int stride) {
    column_panels(x.data(), rows, width, s_.columns);
    s_.prepared.resize(static_cast<std::size_t>(keys * prepared_bytes(Activation::f32, rows, 0)));
    prepare_columns(factors.data(), rows, keys, padded, reinterpret_cast<float*>(s_.prepared.data()));
    multiply({width, rows, s_.columns.data(), static_cast<std::size_t>(even(rows)) * panel_outputs,
              s_.prepared, keys, sums, stride, /*adds=*/true});
  }

  // The tokens [first, end).
  void add(int first, int end) {
    const int rows = (end - first) * static_cast<int>(task_.queries.size());
    const int seen = in_.window > 0 ? std::max(0, first + 1 - in_.window) : 0;
    const int base = seen / panel_outputs * panel_outputs, keys = end - base, padded = whole_panels(keys);
    gather(in_.q, first, rows, in_.key_dim, s_.queries);
    gather(in_.dy, first, rows, in_.value_dim, s_.given);
    by_positions(s_.queries, s_.key_rows, in_.key_dim, rows, base, padded, s_.weights);
    by_positions(s_.given, s_.value_rows, in_.value_dim, rows, base, padded, s_.slopes);
    for (int row = 0; row < rows; ++row) slope(first, row, base, padded);
    s_.dq.resize(static_cast<std::size_t>(rows) * in_.key_dim);
    prepare(s_.slopes.data(), rows, keys, padded);
    multiply({in_.key_dim, keys, s_.key_columns.data() + static_cast<std::ptrdiff_t>(base) * panel_outputs,
              static_cast<std::size_t>(even(task_.tokens)) * panel_outputs, s_.prepared, rows, s_.dq.data(),
              in_.key_dim});
    for (int row = 0; row < rows; ++row)
      std::copy_n(s_.dq.data() + static_cast<std::ptrdiff_t>(row) * in_.key_dim, in_.key_dim,
                  in_.dq + head_index(first, row) * in_.key_dim);
    add_by_keys(s_.slopes, s_.queries, in_.key_dim, rows, keys, padded,
                key_sums_ + static_cast<std::ptrdiff_t>(base) * in_.key_dim, in_.key_dim);
    add_by_keys(s_.weights, s_.given, in_.value_dim, rows, keys, padded,
                value_sums_ + static_cast<std::ptrdiff_t>(base) * value_stride_, value_stride_);
  }

  const Inputs& in_;
  const Task& task_;
  float *key_sums_, *value_sums_;
  int value_stride_;
  Scratch& s_;
};

// Sequences by key/value heads, whose queries are divided where those are few.
std::vector<Task> tasks_of(const AttentionHeads& heads, const std::vector<AttentionRows>& sequences,
                           std::size_t numbers_of_a_position) {
  const int count = static_cast<int>(heads.kv_of_query.size());
  const int alone = static_cast<int>(sequences.size()) * heads.kv_heads;
  const int parts = std::max(1, std::min(fewest_tasks / std::max(1, alone), count / heads.kv_heads));
  std::vector<Task> tasks;
  std::size_t sums = 0;
  int first_row = 0;
  for (const auto& sequence : sequences) {
    for (int kv = 0; kv < heads.kv_heads; ++kv) {
      std::vector<int> queries;
      for (int q = 0; q < count; ++q)
        if (heads.kv_of_query[q] == kv) queries.push_back(q);
      const int all = static_cast<int>(queries.size());
      for (int part = 0; part < parts; ++part) {
        const auto first = queries.begin() + all * part / parts,
                   end = queries.begin() + all * (part + 1) / parts;
        if (first == end) continue;
        tasks.push_back({first_row, sequence.tokens, kv, {first, end}, sums});
        sums += sequence.tokens * numbers_of_a_position;
      }
    }
    first_row += sequence.tokens;
  }
  return tasks;
}

// Adds what the tasks of a key/value head have found, in their order.
void collect(const Inputs& in, const std::vector<Task>& tasks, const std::vector<float>& sums) {
  const auto add = [&](const Task& task, const float* from, float* to, int width) {
    for (std::ptrdiff_t t = 0; t < task.tokens; ++t) {
      float* row = to + ((task.first_row + t) * in.kv_heads + task.kv_head) * width;
      for (int d = 0; d < width; ++d) row[d] += from[t * width + d];
    }
  };
  for (const Task& task : tasks) {
    const float* from = sums.data() + task.sums;
    add(task, from, in.dk, in.key_dim);
    if (!in.values_in_keys)
      add(task, from + static_cast<std::ptrdiff_t>(task.tokens) * in.key_dim, in.dv, in.value_dim);
  }
}

class AttentionGradient : public CpuPrimitive {
 public:
  AttentionGradient(mx::Stream stream, AttentionHeads heads, std::vector<AttentionRows> sequences)
      : CpuPrimitive(stream), heads_(std::move(heads)), sequences_(std::move(sequences)) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const bool in_keys = heads_.value_dim > 0;
    const int query_heads = static_cast<int>(heads_.kv_of_query.size());
    const Inputs in{inputs[0].data<float>(),
                    inputs[1].data<float>(),
                    inputs[2].data<float>(),
                    inputs[3].data<float>(),
                    inputs[4].data<float>(),
                    result_of(outputs[0]),
                    result_of(outputs[1]),
                    in_keys ? nullptr : result_of(outputs[2]),
                    query_heads,
                    heads_.kv_heads,
                    inputs[1].shape(1) / heads_.kv_heads,
                    inputs[4].shape(1) / query_heads,
                    heads_.scale,
                    heads_.window,
                    in_keys};
    const std::size_t numbers = in.key_dim + (in_keys ? 0 : in.value_dim);
    return [in, tasks = tasks_of(heads_, sequences_, numbers), numbers, rows = inputs[1].shape(0)] {
      thread_local std::vector<float> sums;  // fresh memory would be paged in anew
      std::fill_n(in.dk, static_cast<std::ptrdiff_t>(rows) * in.kv_heads * in.key_dim, 0.0F);
      if (in.dv) std::fill_n(in.dv, static_cast<std::ptrdiff_t>(rows) * in.kv_heads * in.value_dim, 0.0F);
      if (tasks.empty()) return;
      sums.resize(tasks.back().sums + tasks.back().tokens * numbers);
      float* to = sums.data();
      parallel(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t i) {
        thread_local Scratch scratch;
        HeadGradient(in, tasks[i], to + tasks[i].sums, scratch).run();
      });
      collect(in, tasks, sums);
    };
  }
  const char* name() const override { return "TandemAttentionGradient"; }

 private:
  AttentionHeads heads_;
  std::vector<AttentionRows> sequences_;
};

}  // namespace

std::vector<mx::array> attention_gradients(const mx::array& q, const mx::array& k, const mx::array& v,
                                           const mx::array& y, const mx::array& dy,
                                           const AttentionHeads& heads,
                                           const std::vector<AttentionRows>& sequences, mx::Stream s) {
  std::vector<mx::Shape> shapes{q.shape(), k.shape()};
  if (heads.value_dim == 0) shapes.push_back(v.shape());
  std::vector<mx::array> inputs;
  for (const auto* x : {&q, &k, &v, &y, &dy}) inputs.push_back(as_float_rows(*x, s));
  auto found = mx::array::make_arrays(shapes, std::vector(shapes.size(), mx::float32),
                                      std::make_shared<AttentionGradient>(s, heads, sequences), inputs);
  if (heads.value_dim > 0) found.push_back(mx::zeros_like(v, s));
  return found;
}

}  // namespace tandem::kernels
