#include "kernels/attention.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "kernels/attention_by_mlx.h"
#include "kernels/attention_gradient.h"
#include "kernels/attention_task.h"
#include "kernels/cpu_primitive.h"
#include "kernels/expanded_attention.h"
#include "kernels/pointwise.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// Query heads that read one key/value head.
struct HeadGroup {
  int kv_head;
  std::vector<int> queries;
};

// Some tokens of one sequence with some query heads.
struct Task {
  const AttendedSequence* sequence;
  const HeadGroup* group;
  int first, end;  // tokens
};

void run(const AttentionInputs& in, const Task& task) {
  thread_local AttentionTask::State state;
  thread_local KeyValuePanels::Scratch scratch;
  AttentionTask rows(in, *task.sequence, task.group->queries, task.first, task.end, state);
  for (int index = rows.first_block(); index < rows.end_block(); ++index)
    rows.add(index, task.sequence->panels->read(index, task.group->kv_head, rows.keys_of(index), scratch));
  rows.store();
}

// Of a query head: the width of its queries and of what it gives.
int key_dim_of(const AttentionHeads& heads, const mx::array& k) {
  const int held = k.shape(1) / heads.kv_heads;
  if (!heads.expansion) return held;
  return heads.expansion->key_up.in() + held - heads.expansion->key_up.out();
}
int value_dim_of(const AttentionHeads& heads, const mx::array& v) {
  if (heads.expansion) return heads.expansion->value_up.out();
  return heads.value_dim > 0 ? heads.value_dim : v.shape(1) / heads.kv_heads;
}

KeyValueShape shape_of(const AttentionHeads& heads, const mx::array& k, const mx::array& v) {
  const int width = k.shape(1) / heads.kv_heads;
  if (heads.expansion) return {1, width, heads.expansion->key_up.out(), true};
  return {heads.kv_heads, width, value_dim_of(heads, v), heads.value_dim > 0};
}

// The new keys and values, a panel of positions to a thread.
void put(const AttendedSequence& sequence, const float* k, const float* v) {
  KeyValuePanels& panels = *sequence.panels;
  const int start = sequence.start, end = start + sequence.tokens;
  panels.reserve(end);
  const int first_panel = start / panel_outputs, end_panel = (end - 1) / panel_outputs + 1;
  parallel(end_panel - first_panel, [&](std::int64_t part) {
    const int panel_start = (first_panel + static_cast<int>(part)) * panel_outputs;
    for (int p = std::max(start, panel_start); p < std::min(end, panel_start + panel_outputs); ++p) {
      const std::size_t row = sequence.first_row + p - start;
      const auto& shape = panels.shape();
      const float* values = shape.values_in_keys ? nullptr : v + row * shape.heads * shape.value_dim;
      panels.put(p, k + row * shape.heads * shape.key_dim, values);
    }
  });
}

void attend(const AttentionInputs& in, const std::vector<HeadGroup>& groups,
            const std::vector<AttendedSequence>& sequences) {
  std::vector<Task> tasks;
  for (const auto& sequence : sequences) {
    for (const HeadGroup& group : groups) {
      const int tokens = std::max(1, AttentionTask::rows_at_once / static_cast<int>(group.queries.size()));
      for (int first = 0; first < sequence.tokens; first += tokens) {
        tasks.push_back({&sequence, &group, first, std::min(sequence.tokens, first + tokens)});
      }
    }
  }
  parallel(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t i) { run(in, tasks[i]); });
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

// What an expansion computes, in the absorbed form: packed weights have no gradient by themselves, and
// multiply from one side alone.
mx::array absorbed(const mx::array& q, const mx::array& k, AttentionHeads heads,
                   const std::vector<AttentionRows>& sequences, mx::Stream s) {
  const HeadExpansion up = *std::exchange(heads.expansion, std::nullopt);
  const int latent = up.key_up.out(), nope = up.key_up.in(), rope = k.shape(1) - latent;
  heads.value_dim = latent;
  const mx::array queries = join_heads(linear_by_head(head_part(q, nope + rope, 0, nope, s), up.key_up, s),
                                       latent, head_part(q, nope + rope, nope, nope + rope, s), rope, s);
  return linear_by_head(attention(queries, k, k, heads, sequences, s), up.value_up, s);
}

class Attention : public ReferencedPrimitive {
 public:
  // `alone`: the sequences, where none continues another.
  Attention(mx::Stream stream, const AttentionHeads& heads, std::vector<AttendedSequence> sequences,
            std::vector<AttentionRows> alone)
      : ReferencedPrimitive(stream,
                            [heads, alone, stream](const auto& in) {
                              return std::vector{absorbed(in[0], in[1], heads, alone, stream)};
                            }),
        heads_(heads),
        sequences_(std::move(sequences)),
        alone_(std::move(alone)) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const AttentionInputs in{inputs[0].data<float>(),
                             result_of(outputs[0]),
                             static_cast<int>(heads_.kv_of_query.size()),
                             key_dim_of(heads_, inputs[1]),
                             value_dim_of(heads_, inputs[2]),
                             heads_.scale,
                             heads_.window};
    return [in, heads = heads_, sequences = sequences_, groups = group_heads(heads_),
            k = inputs[1].data<float>(), v = inputs[2].data<float>()] {
      for (const auto& sequence : sequences) put(sequence, k, v);
      if (heads.expansion) return attend_expanded(in, *heads.expansion, sequences);
      attend(in, groups, sequences);
    };
  }
  const char* name() const override { return "TandemAttention"; }

  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override {
    if (alone_.empty()) throw std::logic_error("attention: no gradient of a sequence that continues another");
    if (heads_.expansion) return ReferencedPrimitive::vjp(primals, cotangents, argnums, outputs);
    const auto all = attention_gradients(primals[0], primals[1], primals[2], outputs[0], cotangents[0],
                                         heads_, alone_, stream());
    std::vector<mx::array> wanted;
    for (const int argnum : argnums) wanted.push_back(all[argnum]);
    return wanted;
  }

 private:
  AttentionHeads heads_;
  std::vector<AttendedSequence> sequences_;
  std::vector<AttentionRows> alone_;
};

void check(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionHeads& heads,
           const std::vector<AttentionRows>& sequences) {
  int rows = 0;
  for (const auto& sequence : sequences) rows += sequence.tokens;
  const int queries = static_cast<int>(heads.kv_of_query.size());
  const bool whole_heads =
      heads.kv_heads > 0 && k.shape(1) % heads.kv_heads == 0 && v.shape(1) % heads.kv_heads == 0;
  const auto& up = heads.expansion;
  if (up && (heads.kv_heads != 1 || heads.window > 0 || up->key_up.count() != queries ||
             up->value_up.count() != queries || up->value_up.in() != up->key_up.out() ||
             up->key_up.out() > k.shape(1)))
    throw std::invalid_argument("attention: what expands latents does not have the heads");
  if (!whole_heads || q.shape(1) != queries * key_dim_of(heads, k))
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

bool AttentionHeads::are_even() const {
  const int queries = static_cast<int>(kv_of_query.size());
  if (queries % kv_heads != 0) return false;
  for (int head = 0; head < queries; ++head) {
    if (kv_of_query[head] != head / (queries / kv_heads)) return false;
  }
  return true;
}

mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v, const AttentionHeads& heads,
                    const std::vector<AttentionRows>& sequences, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  check(q, k, v, heads, sequences);
  if (stream.device == mx::Device::gpu) return attention_by_mlx(q, k, v, heads, sequences, stream);
  if (heads.expansion && (heads.expansion->key_up.packed.empty() || heads.expansion->value_up.packed.empty()))
    throw std::invalid_argument("attention: what expands latents must be packed for a CPU stream");
  const int value_dim = value_dim_of(heads, v);
  std::vector<AttendedSequence> parts;
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
  return mx::array({rows, static_cast<int>(heads.kv_of_query.size()) * value_dim}, mx::float32,
                   std::make_shared<Attention>(stream, heads, std::move(parts),
                                               alone ? sequences : std::vector<AttentionRows>{}),
                   {as_float_rows(q, stream), as_float_rows(k, stream), as_float_rows(v, stream)});
}

}  // namespace tandem::kernels
