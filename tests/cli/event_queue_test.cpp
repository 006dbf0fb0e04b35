#include "cli/event_queue.h"

#include <gtest/gtest.h>

#include <future>

#include "base/limits.h"

namespace tandem::cli {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds patience{5000};

template <typename Event>
Event popped(EventQueue& queue) {
  auto item = queue.pop(patience);
  return std::get<Event>(std::get<engine::Event>(item.value()));
}

TEST(EventQueueTest, TokensNeverWaitForTheirReader) {
  constexpr int tokens = 200'000;
  EventQueue queue;
  for (int i = 0; i < tokens; ++i) queue.push(engine::TokenEvent{.token = i});
  for (int i = 0; i < tokens; ++i) ASSERT_EQ(popped<engine::TokenEvent>(queue).token, i);
  EXPECT_FALSE(queue.pop(milliseconds(0)));
}

TEST(EventQueueTest, RowsOfLogitsWaitForTheirReaderAndAllArrive) {
  constexpr int rows = 3 * limits::score_chunk_tokens;
  EventQueue queue;
  auto pushes = std::async(std::launch::async, [&] {
    for (int i = 0; i < rows; ++i) queue.push(engine::LogitsEvent{.position = i});
    queue.push(engine::DoneEvent{});
  });
  EXPECT_EQ(pushes.wait_for(milliseconds(50)), std::future_status::timeout);
  for (int i = 0; i < rows; ++i) ASSERT_EQ(popped<engine::LogitsEvent>(queue).position, i);
  popped<engine::DoneEvent>(queue);
  EXPECT_EQ(pushes.wait_for(patience), std::future_status::ready);
}

TEST(EventQueueTest, ACloseLetsTheWriterGo) {
  EventQueue queue;
  auto pushes = std::async(std::launch::async, [&] {
    for (int i = 0; i <= limits::score_chunk_tokens; ++i) queue.push(engine::LogitsEvent{.position = i});
  });
  EXPECT_EQ(pushes.wait_for(milliseconds(50)), std::future_status::timeout);
  queue.close();
  EXPECT_EQ(pushes.wait_for(patience), std::future_status::ready);
}

TEST(EventQueueTest, ALossPassesAFullQueue) {
  EventQueue queue;
  for (int i = 0; i < limits::score_chunk_tokens; ++i) queue.push(engine::LogitsEvent{.position = i});
  queue.push(Lost{"rank 1"});
  for (int i = 0; i < limits::score_chunk_tokens; ++i) popped<engine::LogitsEvent>(queue);
  EXPECT_EQ(std::get<Lost>(queue.pop(patience).value()).message, "rank 1");
}

}  // namespace
}  // namespace tandem::cli
