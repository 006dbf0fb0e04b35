#include "cli/event_queue.h"

#include <utility>

#include "base/limits.h"

namespace tandem::cli {
namespace {

bool is_row(const EventQueue::Item& item) {
  const auto* event = std::get_if<engine::Event>(&item);
  return event && std::holds_alternative<engine::LogitsEvent>(*event);
}

}  // namespace

void EventQueue::push(Item item) {
  const bool row = is_row(item);
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || !row || rows_ < limits::score_chunk_tokens; });
    if (closed_) return;
    rows_ += row;
    items_.push_back(std::move(item));
  }
  changed_.notify_all();
}

std::optional<EventQueue::Item> EventQueue::pop(std::chrono::milliseconds timeout) {
  std::optional<Item> item;
  {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, timeout, [&] { return !items_.empty(); })) return std::nullopt;
    item = std::move(items_.front());
    items_.pop_front();
    rows_ -= is_row(*item);
  }
  changed_.notify_all();
  return item;
}

void EventQueue::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
}

}  // namespace tandem::cli
