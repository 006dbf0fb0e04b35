// The connections of one rank to every other, and the moving of bytes over them. Knows nothing of MLX.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/tcp_socket.h"

namespace tandem::parallel {

enum class FrameKind : std::uint8_t {
  all_sum = 1,
  all_max,
  all_min,
  all_gather,
  sum_scatter,
  message,
  split
};

// What a frame belongs to. Both ends must agree on all of it, the frame's number and its bytes, so that ranks
// that have lost step say so instead of mixing up data.
struct Operation {
  FrameKind kind;
  std::uint8_t element = 0;   // the element type, as its user numbers them
  std::uint16_t channel = 0;  // keeps the groups that share a mesh apart
};

// One frame to a peer and one from it; nothing: no frame goes that way. A frame may be empty.
struct Transfer {
  int peer = 0;
  std::optional<std::span<const char>> outgoing;
  std::optional<std::span<char>> incoming;
};

// What the collectives have cost so far.
struct LinkUse {
  double seconds = 0;       // of the callers' threads, waiting included
  std::uint64_t bytes = 0;  // sent
  std::uint64_t collectives = 0;
};

class TcpMesh {
 public:
  // sockets[r] is the connection to rank r; the one at `rank` is empty. `timeout`: of a peer with which
  // nothing moves.
  TcpMesh(int rank, std::vector<TcpSocket> sockets, std::chrono::milliseconds timeout);

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(peers_.size()); }

  // Carries out all transfers at the same time in the caller's thread. Callers in several threads take turns;
  // that two ranks take the same turns is the callers' business. ClusterError names the peer that closed, is
  // out of step or stalled past the timeout; every later exchange throws the same at once.
  void exchange(const Operation& operation, std::span<const Transfer> transfers);

  // Throws what broke the mesh, if anything did; waits for nothing.
  void check() const;

  // From now on this is the wait for a peer with which nothing moves.
  void set_timeout(std::chrono::milliseconds timeout);
  LinkUse use();

 private:
  struct Peer {
    TcpSocket socket;
    std::uint64_t sent_frames = 0;
    std::uint64_t received_frames = 0;
  };
  class Flow;

  void run(std::vector<Flow>& flows) const;
  void sleep(const std::vector<Flow>& flows, Deadline now) const;

  int rank_;
  std::vector<Peer> peers_;
  std::chrono::milliseconds timeout_;
  LinkUse use_;
  std::mutex mutex_;
  std::string breakage_;  // what broke it; written once, before the flag
  std::atomic<bool> broken_ = false;
};

}  // namespace tandem::parallel
