// Ranks as threads of one process, over loopback.
#pragma once

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "parallel/tcp_group.h"
#include "parallel/tcp_handshake.h"
#include "parallel/tcp_mesh.h"

namespace tandem::parallel {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Bytes that differ with their place and number.
inline std::vector<std::uint8_t> message(std::size_t size) {
  std::vector<std::uint8_t> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::uint8_t>(i * 7 + size);
  return bytes;
}

// Where the ranks of one test meet.
class MeetingPoint {
 public:
  explicit MeetingPoint(int ranks) {
    for (int i = 0; i < ranks; ++i) {
      listeners_.push_back(std::make_unique<TcpListener>(/*loopback_only=*/true));
      endpoints.push_back(listeners_.back()->endpoint());
    }
  }

  // Cables laid over loopback: cables[c] are the ranks that have an end of cable c, 127.0.(c+1).(rank+1).
  MeetingPoint(int ranks, const std::vector<std::vector<int>>& cables) {
    for (int rank = 0; rank < ranks; ++rank) {
      std::vector<Network> networks;
      for (std::size_t c = 0; c < cables.size(); ++c) {
        if (std::find(cables[c].begin(), cables[c].end(), rank) == cables[c].end()) continue;
        networks.push_back({"cable" + std::to_string(c), fmt::format("127.0.{}.{}", c + 1, rank + 1), 24});
      }
      listeners_.push_back(std::make_unique<TcpListener>(networks));
      endpoints.push_back(listeners_.back()->endpoint());
    }
  }

  const TcpListener& listener(int rank) const { return *listeners_[rank]; }

  TcpMesh mesh(int rank, milliseconds timeout = milliseconds(5000)) const {
    return TcpMesh(
        rank, connect_ranks(listener(rank), rank, endpoints, secret, steady_clock::now() + timeout), timeout);
  }
  mlx::core::distributed::Group group(int rank, TcpOptions timeouts = {milliseconds(10'000),
                                                                       milliseconds(10'000)}) const {
    return join_tcp_group(listener(rank), rank, endpoints, secret, timeouts);
  }

  std::vector<Endpoint> endpoints;
  std::string secret = "a secret";

 private:
  std::vector<std::unique_ptr<TcpListener>> listeners_;
};

// Runs work(rank) of every rank in its own thread; what each threw, empty where nothing.
template <typename Work>
[[nodiscard]] std::vector<std::string> run_ranks(int ranks, Work work) {
  std::vector<std::string> errors(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        work(rank);
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

// All of `size` bytes, or false: at the deadline, or where the other end closed.
inline bool receive_all(const TcpSocket& socket, char* target, std::size_t size, Deadline deadline) {
  while (size > 0) {
    pollfd polled{socket.descriptor(), POLLIN, 0};
    if (::poll(&polled, 1, timeout_ms(deadline)) <= 0) return false;
    const auto got = ::recv(socket.descriptor(), target, size, 0);
    if (got <= 0) return false;
    target += got;
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

inline double seconds_since(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

}  // namespace tandem::parallel
