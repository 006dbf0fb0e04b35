// The machine's read bandwidth from memory: bench_bandwidth [threads] [GB] → GB/s, one number a repeat and
// the median last. Each thread reads its part of a buffer from end to end, as decode reads weights.
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int repeats = 7;
constexpr std::size_t streams = 4;        // read side by side, as the kernels read panels
constexpr std::size_t step_bytes = 1024;  // of one stream at a time

using Words = std::uint64_t __attribute__((vector_size(64)));

// The xor of every word, so that no load can be left out.
#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
std::uint64_t
read_all(const std::byte* bytes, std::size_t size) {
  Words sums[streams * 2] = {};
  const std::size_t part = size / streams;
  for (std::size_t at = 0; at + step_bytes <= part; at += step_bytes) {
    for (std::size_t stream = 0; stream < streams; ++stream) {
      const auto* from = reinterpret_cast<const Words*>(bytes + stream * part + at);
      for (std::size_t i = 0; i < step_bytes / sizeof(Words); i += 2) {
        sums[2 * stream] ^= from[i];
        sums[2 * stream + 1] ^= from[i + 1];
      }
    }
  }
  std::uint64_t all = 0;
  for (const auto& sum : sums) {
    for (int i = 0; i < 8; ++i) all ^= sum[i];
  }
  return all;
}

std::byte* make_buffer(std::size_t size) {
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  if (memory == MAP_FAILED) {
    fmt::print(stderr, "bench_bandwidth: no {} bytes of memory\n", size);
    std::exit(1);
  }
#ifdef MADV_HUGEPAGE
  ::madvise(memory, size, MADV_HUGEPAGE);
#endif
  std::memset(memory, 1, size);
  return static_cast<std::byte*>(memory);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const double gigabytes = argc > 2 ? std::atof(argv[2]) : 4;
  if (threads < 1 || threads > 1024 || !(gigabytes > 0 && gigabytes < 1024)) {
    fmt::print(stderr, "usage: bench_bandwidth [threads] [GB]\n");
    return 2;
  }
  const std::size_t unit = streams * step_bytes;
  const std::size_t part = static_cast<std::size_t>(gigabytes * 1e9 / threads) / unit * unit;
  const std::byte* buffer = make_buffer(part * static_cast<std::size_t>(threads));
  std::barrier gate(threads);
  std::vector<double> rates;
  std::atomic<std::uint64_t> sink = 0;
  const auto read = [&](int thread) {
    for (int repeat = 0; repeat < repeats; ++repeat) {
      gate.arrive_and_wait();
      const auto start = std::chrono::steady_clock::now();
      sink.fetch_xor(read_all(buffer + part * static_cast<std::size_t>(thread), part),
                     std::memory_order_relaxed);
      gate.arrive_and_wait();
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (thread == 0) rates.push_back(static_cast<double>(part) * threads / seconds / 1e9);
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(read, thread);
  read(0);
  for (auto& other : others) other.join();
  for (const double rate : rates) fmt::print("{:.2f}\n", rate);
  std::sort(rates.begin(), rates.end());
  fmt::print("{:.2f}\n", rates[repeats / 2]);
}
