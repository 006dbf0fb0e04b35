#include "train/parts.h"

#include <mlx/ops.h>

#include <charconv>
#include <string_view>

#include "parallel/collectives.h"

namespace tandem::train {

namespace mx = mlx::core;

int layer_of(const std::string& name) {
  const std::string_view prefix = "model.layers.";
  int layer = -1;
  if (name.starts_with(prefix))
    std::from_chars(name.data() + prefix.size(), name.data() + name.size(), layer);
  return layer;
}

bool is_router(const std::string& name) { return name.ends_with(".mlp.gate.weight"); }

bool is_router_bias(const std::string& name) { return name.ends_with(".e_score_correction_bias"); }

int rows_each(int rows, int ranks) { return (rows + ranks - 1) / ranks; }

mx::array sum_of_one(const mx::array& x, const mx::distributed::Group& group) {
  if (group.size() == 1) return x;
  return mx::view(parallel::sum(mx::view(x, mx::uint32), group), mx::float32);
}

mx::array sum_of_numbers(const mx::array& x, const mx::distributed::Group& group) {
  const mx::array own = mx::equal(mx::arange(group.size()), mx::array(group.rank()));
  return mx::sum(sum_of_one(mx::where(own, x, mx::array(0.0F)), group));
}

mx::array whole_of(const weights::Slice& slice, const mx::array& part, const mx::distributed::Group& group) {
  if (slice.axis < 0 || group.size() == 1) return part;
  const auto axis = static_cast<std::size_t>(slice.axis);
  std::vector<std::pair<int, int>> around(slice.shape.size(), {0, 0});
  around[axis] = {slice.part.begin, slice.shape[axis] - slice.part.end};
  return sum_of_one(mx::pad(part, around), group);
}

}  // namespace tandem::train
