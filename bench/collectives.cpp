// One rank that times all_sum: bench_collectives tcp|ring|mpi RANK RANKS FOLDER ADDRESS BYTES...
// Prints a JSON line a size: {"bytes", "us"}, the median of the rounds, float32. bench/collectives.py starts
// the ranks. tcp: the ranks tell each other their ports through files in FOLDER and connect to
// ADDRESS,ADDRESS,… one a rank, or several with + between them. ring and mpi take what MLX's backends take
// from the environment.
#include <fmt/format.h>
#include <mlx/distributed/distributed.h>
#include <mlx/distributed/ops.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "parallel/tcp_group.h"

namespace mx = mlx::core;
using namespace tandem;
using Clock = std::chrono::steady_clock;

namespace {

std::uint16_t port_of(const std::filesystem::path& file) {
  for (int tries = 0; tries < 3000; ++tries) {
    int port = 0;
    if (std::ifstream(file) >> port) return static_cast<std::uint16_t>(port);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  throw std::runtime_error("the other rank did not come");
}

mx::distributed::Group join(int rank, int ranks, const std::filesystem::path& folder,
                            const std::string& addresses) {
  const parallel::TcpListener listener(false);
  const auto part = folder / fmt::format("{}.part", rank);
  std::ofstream(part) << listener.endpoint().port << "\n";
  std::filesystem::rename(part, folder / fmt::format("{}.port", rank));
  std::vector<parallel::Endpoint> endpoints;
  std::istringstream list(addresses);
  for (int i = 0; i < ranks; ++i) {
    std::string of_rank, address;
    std::getline(list, of_rank, ',');
    std::vector<std::string> all;
    for (std::istringstream parts(of_rank); std::getline(parts, address, '+');) all.push_back(address);
    endpoints.push_back({all, port_of(folder / fmt::format("{}.port", i))});
  }
  return parallel::join_tcp_group(listener, rank, endpoints, "bench");
}

double round_us(const mx::array& x, const mx::distributed::Group& group, int calls) {
  mx::eval(mx::distributed::all_sum(x, group));
  const auto start = Clock::now();
  for (int i = 0; i < calls; ++i) mx::eval(mx::distributed::all_sum(x, group));
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / calls;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7)
    return fmt::print(stderr, "usage: bench_collectives tcp|ring|mpi RANK RANKS FOLDER ADDRESSES BYTES...\n"),
           2;
  mx::set_default_device(mx::Device::cpu);
  const std::string backend = argv[1];
  const auto group = backend == "tcp" ? join(std::atoi(argv[2]), std::atoi(argv[3]), argv[4], argv[5])
                                      : mx::distributed::init(true, backend);
  for (int i = 6; i < argc; ++i) {
    const long bytes = std::atol(argv[i]);
    const mx::array x = mx::ones({static_cast<int>(bytes / 4)});
    mx::eval(x);
    const int calls = static_cast<int>(std::clamp(64L * (1 << 20) / std::max(bytes, 1L) / 8, 1L, 2000L));
    std::vector<double> rounds;
    for (int r = 0; r < 5; ++r) rounds.push_back(round_us(x, group, calls));
    std::sort(rounds.begin(), rounds.end());
    if (group.rank() == 0)
      fmt::print("{{\"bytes\": {}, \"us\": {:.2f}}}\n", bytes, rounds[rounds.size() / 2]);
  }
}
