#include "parallel/broadcast.h"

#include <fmt/format.h>
#include <mlx/array.h>
#include <mlx/distributed/ops.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <stdexcept>

#include "base/error.h"
#include "base/limits.h"
#include "parallel/tcp_group.h"

namespace tandem::parallel {
namespace {

namespace mx = mlx::core;

// The sum over ranks of what is zero everywhere but on the root.
std::vector<std::uint8_t> sum_bytes(const mx::distributed::Group& group,
                                    const std::vector<std::uint8_t>& bytes) {
  const mx::array own(bytes.begin(), {static_cast<int>(bytes.size())}, mx::uint8);
  mx::array all = mx::distributed::all_sum(own, group);  // on the device that the backend computes on
  try {
    mx::eval(all);
  } catch (const std::runtime_error&) {
    check(group);
    throw;
  }
  return {all.data<std::uint8_t>(), all.data<std::uint8_t>() + all.size()};
}

}  // namespace

std::vector<std::uint8_t> broadcast(const mx::distributed::Group& group, std::vector<std::uint8_t> bytes,
                                    int root) {
  if (group.size() == 1) return bytes;
  constexpr std::size_t first_bytes = 256, length_bytes = sizeof(std::uint32_t);
  const bool sends = group.rank() == root;
  assert(!sends || bytes.size() <= limits::broadcast_bytes);
  // The length and as much as fits, then the rest.
  std::vector<std::uint8_t> first(first_bytes, 0);
  if (sends) {
    const auto length = static_cast<std::uint32_t>(bytes.size());
    std::memcpy(first.data(), &length, length_bytes);
    std::copy_n(bytes.begin(), std::min(bytes.size(), first_bytes - length_bytes),
                first.begin() + length_bytes);
  }
  first = sum_bytes(group, first);
  std::uint32_t length = 0;
  std::memcpy(&length, first.data(), length_bytes);
  if (length > limits::broadcast_bytes)
    throw ClusterError(fmt::format("a broadcast of {} bytes is too long", length));
  const std::size_t fits = std::min<std::size_t>(length, first_bytes - length_bytes);
  std::vector<std::uint8_t> result(first.begin() + length_bytes,
                                   first.begin() + static_cast<std::ptrdiff_t>(length_bytes + fits));
  if (fits < length) {
    std::vector<std::uint8_t> rest(length - fits, 0);
    if (sends) rest.assign(bytes.begin() + static_cast<std::ptrdiff_t>(fits), bytes.end());
    rest = sum_bytes(group, rest);
    result.insert(result.end(), rest.begin(), rest.end());
  }
  return result;
}

}  // namespace tandem::parallel
