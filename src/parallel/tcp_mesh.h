// The connections of one rank to every other, and the moving of bytes over them. Knows nothing of MLX.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "parallel/tcp_group.h"

namespace tandem::parallel {

// What a frame belongs to; both ends must agree, so that ranks that have lost step say so instead of mixing
// up data.
enum class FrameKind : std::uint16_t { all_reduce = 1, all_gather, sum_scatter, message, split };

// Bytes to and from one peer; either may be empty, and then no frame goes that way.
struct Transfer {
  int peer = 0;
  std::span<const char> outgoing;
  std::span<char> incoming;
};

class TcpMesh {
 public:
  // Connects to every rank below `rank` and accepts every rank above.
  TcpMesh(const TcpListener& listener, int rank, const std::vector<Endpoint>& endpoints,
          const std::string& secret, std::chrono::milliseconds timeout);
  ~TcpMesh();
  TcpMesh(const TcpMesh&) = delete;
  TcpMesh& operator=(const TcpMesh&) = delete;

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(peers_.size()); }

  // Carries out all transfers at the same time in the caller's thread. `channel` keeps the groups that share
  // the mesh apart. ClusterError names the peer that closed, sent something else, or stalled past the
  // timeout; the mesh is of no use after that and every later exchange throws the same.
  void exchange(FrameKind kind, std::uint16_t channel, std::span<const Transfer> transfers);

 private:
  struct Peer {
    int descriptor = -1;
    std::uint64_t sent_frames = 0;
    std::uint64_t received_frames = 0;
  };
  class Flow;

  int rank_;
  std::vector<Peer> peers_;
  std::chrono::milliseconds timeout_;
  std::string broken_;  // what broke it
};

}  // namespace tandem::parallel
