#include "kernels/attention.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "kernels/attention_by_mlx.h"
#include "kernels/cpu_primitive.h"
#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

constexpr int block = KeyValuePanels::block;
constexpr int rows_at_once = 128;  // (token, query head) pairs: their scores stay in the second-level cache

struct Sequence {
  std::shared_ptr<KeyValuePanels> panels;
  int start;  // positions held before
  int tokens;
  int first_row;  // of q
};

// Query heads that read one key/value head.
struct HeadGroup {
  int kv_head;
  std::vector<int> queries;
};

// Some tokens of one sequence with some query heads.
struct Task {
  const Sequence* sequence;
  const HeadGroup* group;
  int first, end;  // tokens
};

// What every task reads.
struct Inputs {
  const float* q;
  float* y;
  const AttentionHeads* heads;
  std::vector<HeadGroup> groups;
  int key_dim, value_dim;

  int query_heads() const { return static_cast<int>(heads->kv_of_query.size()); }
};

// Scratch of one thread, kept between calls.
struct Scratch {
  std::vector<float> rows, scores, sums;
  KeyValuePanels::Scratch held;
  std::vector<std::byte> prepared_q, prepared_p;
  std::vector<Softmax> softmaxes;

  void fit(std::size_t rows_count, int key_dims, int value_dims) {
    const auto grow = [](auto& buffer, std::size_t size) {
      if (buffer.size() < size) buffer.resize(size);
    };
    grow(rows, rows_count * key_dims);
    grow(scores, rows_count * block);
    grow(prepared_q, rows_count * prepared_bytes(Activation::f32, key_dims, 0));
    grow(prepared_p, rows_count * prepared_bytes(Activation::f32, block, 0));
    sums.assign(rows_count * value_dims, 0);
    softmaxes.assign(rows_count, {-std::numeric_limits<float>::infinity(), 0});
  }
};

// The queries of one task against the blocks of keys that they see.
class TaskRun {
 public:
  TaskRun(const Inputs& in, const Task& task)
      : in_(in),
        task_(task),
        queries_(task.group->queries),
        panels_(*task.sequence->panels),
        loops_(current_loops()),
        rows_(static_cast<int>(queries_.size()) * (task.end - task.first)) {}

  void run() {
    thread_local Scratch scratch;
    scratch_ = &scratch;
    scratch.fit(rows_, panels_.key_dims(), panels_.value_dims());
    prepare_queries();
    const int seen = position(rows_ - 1) + 1;  // positions that the last row sees
    for (int index = first_seen(0) / block; index * block < seen; ++index) {
      add_block(index, std::min(block, seen - index * block));
    }
    store();
  }

 private:
  int position(int row) const {
    return task_.sequence->start + task_.first + row / static_cast<int>(queries_.size());
  }
  int first_seen(int row) const {
    return in_.heads->window > 0 ? std::max(0, position(row) + 1 - in_.heads->window) : 0;
  }
  // Of row `row`, where in q and y its head starts, in heads.
  std::size_t head_index(int row) const {
    const int group = static_cast<int>(queries_.size());
    const std::size_t token = task_.sequence->first_row + task_.first + row / group;
    return token * in_.query_heads() + queries_[row % group];
  }

  void prepare_queries() {
    const int dims = panels_.key_dims();
    for (int row = 0; row < rows_; ++row) {
      const float* from = in_.q + head_index(row) * in_.key_dim;
      float* to = scratch_->rows.data() + static_cast<std::size_t>(row) * dims;
      std::copy_n(from, in_.key_dim, to);
      std::fill(to + in_.key_dim, to + dims, 0.0F);
    }
    prepare(scratch_->rows.data(), dims, dims, scratch_->prepared_q);
  }

  void prepare(const float* x, int stride, int in, std::vector<std::byte>& to) const {
    const int tiles = (rows_ + loops_.dense_rows - 1) / loops_.dense_rows;
    loops_.prepare({x, stride, rows_, in, Activation::f32, 0, to.data()}, 0, tiles);
  }

  void add_block(int index, int keys) {
    const int padded = (keys + panel_outputs - 1) / panel_outputs * panel_outputs;
    const int key_dims = panels_.key_dims(), value_dims = panels_.value_dims();
    const PanelShape by_keys{padded, key_dims, Format::f32, ScaleType::f32, 0};
    const auto held = panels_.read(index, task_.group->kv_head, keys, scratch_->held);
    loops_.multiply({by_keys, reinterpret_cast<const std::byte*>(held.keys), panel_bytes(by_keys),
                     scratch_->prepared_q.data(), scratch_->scores.data(), block, rows_},
                    0, panels_of(by_keys));
    for (int row = 0; row < rows_; ++row) rescale(row, index, padded);
    prepare(scratch_->scores.data(), block, padded, scratch_->prepared_p);
    const PanelShape by_dims{value_dims, padded, Format::f32, ScaleType::f32, 0};
    loops_.multiply(
        {by_dims, reinterpret_cast<const std::byte*>(held.values), std::int64_t{block} * panel_outputs * 4,
         scratch_->prepared_p.data(), scratch_->sums.data(), value_dims, rows_, /*adds=*/true},
        0, panels_of(by_dims));
  }

  // The row's scores of a block become weights; its sums so far are measured by the new largest score.
  void rescale(int row, int index, int padded) {
    float* scores = scratch_->scores.data() + static_cast<std::size_t>(row) * block;
    const int first = std::clamp(first_seen(row) - index * block, 0, padded);
    const int end = std::clamp(position(row) + 1 - index * block, 0, padded);
    if (first >= end) {  // it sees nothing here
      std::fill_n(scores, padded, 0.0F);
      return;
    }
    const float factor =
        loops_.vectors.softmax(scores, first, end, padded, in_.heads->scale, scratch_->softmaxes[row]);
    if (factor == 1) return;
    float* sums = scratch_->sums.data() + static_cast<std::size_t>(row) * panels_.value_dims();
    for (int d = 0; d < in_.value_dim; ++d) sums[d] *= factor;
  }

  void store() const {
    for (int row = 0; row < rows_; ++row) {
      const float* sums = scratch_->sums.data() + static_cast<std::size_t>(row) * panels_.value_dims();
      float* y = in_.y + head_index(row) * in_.value_dim;
      for (int d = 0; d < in_.value_dim; ++d) y[d] = sums[d] / scratch_->softmaxes[row].sum;
    }
  }

  const Inputs& in_;
  const Task& task_;
  const std::vector<int>& queries_;
  const KeyValuePanels& panels_;
  const PanelLoops& loops_;
  int rows_;
  Scratch* scratch_ = nullptr;
};

int value_dim_of(const AttentionHeads& heads, const mx::array& v) {
  return heads.value_dim > 0 ? heads.value_dim : v.shape(1) / heads.kv_heads;
}

KeyValueShape shape_of(const AttentionHeads& heads, const mx::array& k, const mx::array& v) {
  return {heads.kv_heads, k.shape(1) / heads.kv_heads, value_dim_of(heads, v), heads.value_dim > 0};
}

// The new keys and values, a panel of positions to a thread.
void put(const Inputs& in, const Sequence& sequence, const float* k, const float* v) {
  KeyValuePanels& panels = *sequence.panels;
  const int start = sequence.start, end = start + sequence.tokens;
  panels.reserve(end);
  const int first_panel = start / panel_outputs, end_panel = (end - 1) / panel_outputs + 1;
  parallel(end_panel - first_panel, [&](std::int64_t part) {
    const int panel_start = (first_panel + static_cast<int>(part)) * panel_outputs;
    for (int p = std::max(start, panel_start); p < std::min(end, panel_start + panel_outputs); ++p) {
      const std::size_t row = sequence.first_row + p - start;
      const int heads = panels.shape().heads;
      const float* values = panels.shape().values_in_keys ? nullptr : v + row * heads * in.value_dim;
      panels.put(p, k + row * heads * in.key_dim, values);
    }
  });
}

void run_attention(const Inputs& in, const std::vector<Sequence>& sequences, const float* k, const float* v) {
  std::vector<Task> tasks;
  for (const auto& sequence : sequences) {
    put(in, sequence, k, v);
    for (const HeadGroup& group : in.groups) {
      const int tokens = std::max(1, rows_at_once / static_cast<int>(group.queries.size()));
      for (int first = 0; first < sequence.tokens; first += tokens) {
        tasks.push_back({&sequence, &group, first, std::min(sequence.tokens, first + tokens)});
      }
    }
  }
  parallel(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t i) { TaskRun(in, tasks[i]).run(); });
}

// The query heads of each key/value head; those of a lone one in a group for each thread.
std::vector<HeadGroup> group_heads(const AttentionHeads& heads) {
  const int count = heads.kv_heads == 1 ? threads() : heads.kv_heads;
  const int queries = static_cast<int>(heads.kv_of_query.size());
  std::vector<HeadGroup> groups(count);
  for (int g = 0; g < count; ++g) groups[g].kv_head = heads.kv_heads == 1 ? 0 : g;
  for (int query = 0; query < queries; ++query) {
    const int g = heads.kv_heads == 1 ? query * count / queries : heads.kv_of_query[query];
    groups[g].queries.push_back(query);
  }
  std::erase_if(groups, [](const HeadGroup& group) { return group.queries.empty(); });
  return groups;
}

class Attention : public ReferencedPrimitive {
 public:
  Attention(mx::Stream stream, const AttentionHeads& heads, std::vector<Sequence> sequences,
            Reference reference)
      : ReferencedPrimitive(stream, std::move(reference)), heads_(heads), sequences_(std::move(sequences)) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [heads = heads_, sequences = sequences_, groups = group_heads(heads_), q = inputs[0].data<float>(),
            k = inputs[1].data<float>(), v = inputs[2].data<float>(), y = result_of(outputs[0]),
            key_dim = inputs[1].shape(1) / heads_.kv_heads, value_dim = value_dim_of(heads_, inputs[2])] {
      run_attention({q, y, &heads, groups, key_dim, value_dim}, sequences, k, v);
    };
  }
  const char* name() const override { return "TandemAttention"; }

 private:
  AttentionHeads heads_;
  std::vector<Sequence> sequences_;
};

void check(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionHeads& heads,
           const std::vector<AttentionRows>& sequences) {
  int rows = 0;
  for (const auto& sequence : sequences) rows += sequence.tokens;
  const int queries = static_cast<int>(heads.kv_of_query.size());
  const bool whole_heads =
      heads.kv_heads > 0 && k.shape(1) % heads.kv_heads == 0 && v.shape(1) % heads.kv_heads == 0;
  if (!whole_heads || q.shape(1) != queries * (k.shape(1) / heads.kv_heads))
    throw std::invalid_argument("attention: q, k and v do not have the heads' widths");
  if (rows != q.shape(0) || rows != k.shape(0) || rows != v.shape(0) ||
      heads.value_dim * heads.kv_heads > k.shape(1))
    throw std::invalid_argument("attention: q, k and v do not have the sequences' rows");
  for (const int head : heads.kv_of_query) {
    if (head < 0 || head >= heads.kv_heads)
      throw std::invalid_argument("attention: a query head reads no head");
  }
  for (const auto& sequence : sequences) {
    const auto* panels = sequence.held ? sequence.held->panels.get() : nullptr;
    if (panels && panels->shape() != shape_of(heads, k, v))
      throw std::invalid_argument("attention: what is held has other heads");
  }
}

}  // namespace

mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionHeads& heads,
                    const std::vector<AttentionRows>& sequences, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  check(q, k, v, heads, sequences);
  if (stream.device == mx::Device::gpu) return attention_by_mlx(q, k, v, heads, sequences, stream);
  const int value_dim = value_dim_of(heads, v);
  std::vector<Sequence> parts;
  int rows = 0;
  bool alone = true;
  for (const auto& sequence : sequences) {
    const auto fresh = [&](KeyValueFormat format) {
      return std::make_shared<KeyValuePanels>(shape_of(heads, k, v), format);
    };
    if (sequence.held) {
      alone = false;
      if (!sequence.held->panels) sequence.held->panels = fresh(sequence.held->format);
      parts.push_back({sequence.held->panels, sequence.held->length, sequence.tokens, rows});
      sequence.held->length += sequence.tokens;
    } else {
      parts.push_back({fresh(KeyValueFormat::plain), 0, sequence.tokens, rows});
    }
    rows += sequence.tokens;
  }
  const auto reference = [heads, sequences, stream, alone](const std::vector<mx::array>& in) {
    if (!alone) throw std::logic_error("attention: no gradient of a sequence that continues another");
    return std::vector{attention_by_mlx(in[0], in[1], in[2], heads, sequences, stream)};
  };
  return mx::array({rows, static_cast<int>(heads.kv_of_query.size()) * value_dim}, mx::float32,
                   std::make_shared<Attention>(stream, heads, std::move(parts), reference),
                   {as_float_rows(q, stream), as_float_rows(k, stream), as_float_rows(v, stream)});
}

}  // namespace tandem::kernels
