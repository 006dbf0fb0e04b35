#include "kernels/threads.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "base/limits.h"

namespace tandem::kernels {
namespace {

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True when `ready` came true within `time`; other threads get the processor now and then.
bool spin(std::chrono::microseconds time, const auto& ready) {
  constexpr int tries_between_looks = 256;
  const auto end = std::chrono::steady_clock::now() + time;
  for (;;) {
    for (int i = 0; i < tries_between_looks; ++i) {
      if (ready()) return true;
      relax();
    }
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::yield();
  }
}

// A lock that, unlike std::mutex, the thread that holds it may try: a part that calls parallel() does.
class BusyFlag {
 public:
  bool try_lock() { return !busy_.exchange(true, std::memory_order_acquire); }
  void lock() {
    while (!try_lock()) relax();
  }
  void unlock() { busy_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> busy_{false};
};

class Pool {
 public:
  ~Pool() { resize(1); }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void resize(int count) {
    const std::lock_guard lock(busy_);
    stop_ = true;
    wake();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    stop_ = false;
    for (int i = 1; i < count; ++i) {
      workers_.emplace_back([this, seen = round_.load()] { work(seen); });
    }
  }

  void run(std::int64_t parts, const std::function<void(std::int64_t)>& part) {
    std::unique_lock lock(busy_, std::defer_lock);
    if (parts <= 1 || workers_.empty() || !lock.try_lock()) {
      for (std::int64_t i = 0; i < parts; ++i) part(i);
      return;
    }
    part_ = &part;
    parts_ = parts;
    next_ = 0;
    running_ = static_cast<int>(workers_.size());
    wake();
    take_parts();
    // The others are at their last part: it would cost more to sleep than to wait.
    while (running_.load(std::memory_order_acquire) > 0) relax();
  }

 private:
  void wake() {
    round_.fetch_add(1);
    if (sleeping_.load() > 0) round_.notify_all();
  }

  void take_parts() {
    for (std::int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < parts_;) (*part_)(i);
  }

  void work(std::uint32_t seen) {
    for (;; ++seen) {
      const auto called = [&] { return round_.load(std::memory_order_acquire) != seen; };
      if (!spin(limits::kernel_spin, called)) {
        sleeping_.fetch_add(1);
        round_.wait(seen);
        sleeping_.fetch_sub(1);
      }
      if (stop_) return;
      take_parts();
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  BusyFlag busy_;
  std::vector<std::thread> workers_;
  std::atomic<std::uint32_t> round_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<int> running_{0};
  std::atomic<std::int64_t> next_{0};
  std::int64_t parts_ = 0;
  const std::function<void(std::int64_t)>* part_ = nullptr;
  bool stop_ = false;
};

Pool& pool() {
  static Pool the_pool;
  return the_pool;
}

}  // namespace

void set_threads(int count) { pool().resize(count); }
int threads() { return pool().size(); }
void parallel(std::int64_t parts, const std::function<void(std::int64_t)>& part) { pool().run(parts, part); }

}  // namespace tandem::kernels
