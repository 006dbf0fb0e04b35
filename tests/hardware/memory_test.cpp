#include "hardware/memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <string>

namespace tandem::hardware {
namespace {

namespace fs = std::filesystem;

#if !defined(__APPLE__)

constexpr std::uint64_t kib = 1024;

// A root folder with these files, removed again.
class Root {
 public:
  explicit Root(const std::map<std::string, std::string>& files)
      : path_(fs::temp_directory_path() / ("tandem-memory-" + std::to_string(::getpid()))) {
    fs::remove_all(path_);
    for (const auto& [name, text] : files) {
      fs::create_directories((path_ / name).parent_path());
      std::ofstream(path_ / name) << text;
    }
  }
  ~Root() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

constexpr const char* meminfo =
    "MemTotal:       8000 kB\nMemFree:        1000 kB\nMemAvailable:   6000 kB\nCached: 9 kB\n";

TEST(MemoryTest, IsWhatTheMachineAndEveryGroupAllow) {
  const struct {
    const char* name;
    std::map<std::string, std::string> files;
    std::uint64_t total, available;
  } table[] = {
      {"no groups", {}, 8000 * kib, 6000 * kib},
      {"no limit",
       {{"proc/self/cgroup", "0::/a\n"}, {"sys/fs/cgroup/a/memory.max", "max\n"}},
       8000 * kib,
       6000 * kib},
      {"version 2, its own limit; cached files count as available",
       {{"proc/self/cgroup", "0::/a/b\n"},
        {"sys/fs/cgroup/a/b/memory.max", "4096000\n"},
        {"sys/fs/cgroup/a/b/memory.current", "3072000\n"},
        {"sys/fs/cgroup/a/b/memory.stat", "anon 5\ninactive_file 1024000\nactive_file 7\n"}},
       4000 * kib,
       2000 * kib},
      {"version 2, the limit of one above",
       {{"proc/self/cgroup", "0::/a/b\n"},
        {"sys/fs/cgroup/a/memory.max", "2048000\n"},
        {"sys/fs/cgroup/a/memory.current", "1024000\n"}},
       2000 * kib,
       1000 * kib},
      {"version 2, a namespace of its own",
       {{"proc/self/cgroup", "0::/\n"},
        {"sys/fs/cgroup/memory.max", "2048000\n"},
        {"sys/fs/cgroup/memory.current", "1024000\n"}},
       2000 * kib,
       1000 * kib},
      {"more used than allowed",
       {{"proc/self/cgroup", "0::/\n"},
        {"sys/fs/cgroup/memory.max", "1024000\n"},
        {"sys/fs/cgroup/memory.current", "2048000\n"}},
       1000 * kib,
       0},
      {"version 1",
       {{"proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/c\n"},
        {"sys/fs/cgroup/memory/c/memory.limit_in_bytes", "3072000\n"},
        {"sys/fs/cgroup/memory/c/memory.usage_in_bytes", "2048000\n"},
        {"sys/fs/cgroup/memory/c/memory.stat", "total_inactive_file 512000\n"}},
       3000 * kib,
       1500 * kib},
  };
  for (auto row : table) {
    row.files["proc/meminfo"] = meminfo;
    const Root root(row.files);
    const auto memory = machine_memory(root.path());
    EXPECT_EQ(memory.total_bytes, row.total) << row.name;
    EXPECT_EQ(memory.available_bytes, row.available) << row.name;
  }
}

TEST(MemoryTest, IsZeroWhereTheSystemDoesNotTell) {
  const auto memory = machine_memory("/no/such/root");
  EXPECT_EQ(memory.total_bytes, 0U);
  EXPECT_EQ(memory.available_bytes, 0U);
}

#endif

TEST(MemoryTest, OfThisMachine) {
  const auto memory = machine_memory();
  EXPECT_GT(memory.total_bytes, 100U << 20);
  EXPECT_GT(memory.available_bytes, 0U);
  EXPECT_LE(memory.available_bytes, memory.total_bytes);
}

}  // namespace
}  // namespace tandem::hardware
