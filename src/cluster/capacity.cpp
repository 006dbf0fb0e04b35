#include "cluster/capacity.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/limits.h"
#include "engine/step_memory.h"

namespace tandem::cluster {
namespace {

constexpr std::int64_t block = engine::cache_block_tokens;

// One memory and what the ranks in it need together, bytes.
struct Pool {
  std::string name;  // for messages
  std::uint64_t free = 0, total = 0;
  std::uint64_t block = 0, buffers = 0, position = 0;
  std::uint64_t ranks = 0;

  std::uint64_t margin() const {
    return std::max(limits::memory_margin_bytes,
                    static_cast<std::uint64_t>(limits::memory_margin_share * static_cast<double>(total)));
  }
  // For the cache, and what a chunk holds for each position that it sees.
  std::uint64_t room() const { return free - std::min(free, buffers + margin()); }
};

std::vector<Pool> pools_of(const std::vector<RankRoom>& ranks) {
  std::map<std::pair<std::string, std::string>, Pool> pools;
  for (const auto& [host, room] : ranks) {
    auto& pool = pools[{host, room.memory}];
    pool.name = fmt::format("the {} of {}", room.memory == "main" ? "memory" : "GPU",
                            host == "local" ? "this machine" : host);
    pool.free = pool.ranks == 0 ? room.free_bytes : std::min(pool.free, room.free_bytes);
    pool.total = std::max(pool.total, room.total_bytes);
    pool.block += room.block_bytes;
    pool.buffers += room.buffer_bytes;
    pool.position += room.position_bytes;
    ++pool.ranks;
  }
  std::vector<Pool> list;
  for (auto& [key, pool] : pools) list.push_back(std::move(pool));
  return list;
}

std::string shown(std::uint64_t bytes) {
  const auto number = static_cast<double>(bytes);
  if (bytes < 100'000) return fmt::format("{} B", bytes);
  return bytes < 1'000'000'000 ? fmt::format("{:.1f} MB", number / 1e6)
                               : fmt::format("{:.1f} GB", number / 1e9);
}

// Tokens in the cache, and of one request, that a memory has room for.
struct Fit {
  std::int64_t cache_tokens, context;
};

Fit fit(const Pool& pool, std::int64_t model_context) {
  if (pool.total == 0) return {INT32_MAX / block * block, model_context};  // the system does not tell
  const std::uint64_t blocks = pool.room() / pool.block;
  // What a request's own chunks hold leaves less for the cache.
  const std::uint64_t alone = pool.room() / (pool.block + block * pool.position);
  const auto context = std::min(model_context, static_cast<std::int64_t>(alone) * block);
  const std::uint64_t held = context * pool.position;
  return {held == 0 ? static_cast<std::int64_t>(blocks) * block
                    : static_cast<std::int64_t>((pool.room() - held) / pool.block) * block,
          context};
}

void check_asked_memory(const Pool& pool, std::uint64_t kv_bytes) {
  if (kv_bytes <= pool.room() / pool.ranks) return;  // their product may not fit into a number
  throw InputError(fmt::format("--kv-memory {} for each of {} rank{} is more than {} has room for: {}",
                               shown(kv_bytes), pool.ranks, pool.ranks == 1 ? "" : "s", pool.name,
                               shown(pool.room())));
}

}  // namespace

Capacity capacity_of(const std::vector<RankRoom>& ranks, const ContextWish& wish) {
  const int model = ranks.front().room.model_context;
  Capacity result{model, INT64_MAX, 0, "the model's"};
  const auto bound = [&](std::int64_t context, std::int64_t cache_tokens, const std::string& by) {
    result.cache_tokens = std::min(result.cache_tokens, cache_tokens);
    if (context >= result.context) return;
    result.context = static_cast<int>(context);
    result.bound = fmt::format("{}; the model's is {}", by, model);
  };
  for (const auto& pool : pools_of(ranks)) {
    const auto [cache_tokens, context] = fit(pool, model);
    if (context <= 0) {
      throw InputError(fmt::format(
          "no memory is left for a context: {} has {} free, of which {} stay free and a step takes {}; end "
          "other programs, or spread the model over more machines",
          pool.name, shown(pool.free), shown(pool.margin()), shown(pool.buffers)));
    }
    if (wish.kv_bytes > 0) check_asked_memory(pool, wish.kv_bytes);
    bound(context, cache_tokens, "what " + pool.name + " has room for");
  }
  for (const auto& [host, room] : ranks) {
    result.token_bytes = std::max(result.token_bytes, room.block_bytes / block);
    if (wish.kv_bytes == 0) continue;
    const auto tokens = static_cast<std::int64_t>(wish.kv_bytes / room.block_bytes) * block;
    if (tokens == 0) {
      throw InputError(fmt::format("--kv-memory {} is too little: {} tokens, the least, take {} on one rank",
                                   shown(wish.kv_bytes), block, shown(room.block_bytes)));
    }
    bound(tokens, tokens, "--kv-memory");
  }
  if (wish.tokens > result.context) {
    throw InputError(fmt::format("--context {} is more than the {} tokens that there are ({})", wish.tokens,
                                 result.context, result.bound));
  }
  if (wish.tokens > 0) bound(wish.tokens, INT64_MAX, "--context");
  return result;
}

std::string describe(const Capacity& capacity) {
  return fmt::format("context: {} tokens ({}) · cache {:.1f} kB a token and rank, room for {} tokens in all",
                     capacity.context, capacity.bound, static_cast<double>(capacity.token_bytes) / 1000,
                     capacity.cache_tokens);
}

}  // namespace tandem::cluster
