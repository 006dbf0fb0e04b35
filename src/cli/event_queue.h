// A request's events on their way from the conductor's thread to the one that waits for them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <variant>

#include "engine/request.h"

namespace tandem::cli {

struct Lost {
  std::string message;
};

// Nothing that is pushed gets lost. Tokens are small, and no more than the request asked for; rows of logits
// are large, so that a push of one waits where limits::score_chunk_tokens of them lie there.
class EventQueue {
 public:
  using Item = std::variant<engine::Event, Lost>;

  void push(Item item);
  // Waits for an item or the timeout.
  std::optional<Item> pop(std::chrono::milliseconds timeout);
  // Nobody pops any more: what is pushed from now on goes.
  void close();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> items_;
  std::size_t rows_ = 0;  // of logits, among the items
  bool closed_ = false;
};

}  // namespace tandem::cli
