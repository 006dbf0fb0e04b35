// How long a context the memory of a group's machines allows. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cluster/protocol.h"

namespace tandem::cluster {

// What the user asks for; 0: as much as there is.
struct ContextWish {
  int tokens = 0;              // of one request
  std::uint64_t kv_bytes = 0;  // of the cache of each rank
};

struct RankRoom {
  std::string host;  // as the plan names it
  Room room;
};

struct Capacity {
  int context = 0;                // tokens of one request, prompt and answer together
  std::int64_t cache_tokens = 0;  // of all requests that run at once, each rounded up to whole blocks
  std::uint64_t token_bytes = 0;  // of the cache of one token, on the rank where it takes most
  std::string bound;              // what bounds the context
};

// Ranks that share a memory share what is free of it, less what their steps take and a margin
// (limits::memory_margin_share). InputError where nothing fits, or less than what is asked: it names both.
Capacity capacity_of(const std::vector<RankRoom>& ranks, const ContextWish& wish);

// "context: 4096 tokens (the model's) · cache 13.8 kB a token and rank, room for 1.2 million tokens in all"
std::string describe(const Capacity& capacity);

}  // namespace tandem::cluster
