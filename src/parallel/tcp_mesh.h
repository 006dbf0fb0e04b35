// The connections of one rank to every other, and the moving of bytes over them. Knows nothing of MLX.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "parallel/tcp_flow.h"
#include "parallel/tcp_frame.h"
#include "parallel/tcp_socket.h"

namespace tandem::parallel {

// What the collectives have cost so far.
struct LinkUse {
  double seconds = 0;       // of the callers' threads, waiting included
  std::uint64_t bytes = 0;  // sent
  std::uint64_t collectives = 0;
};

class TcpMesh {
 public:
  // links[r] are the connections to rank r, in the order that r knows them in, too; none at `rank`.
  // `timeout`: of a peer with which nothing moves.
  TcpMesh(int rank, std::vector<std::vector<TcpSocket>> links, std::chrono::milliseconds timeout);

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(peers_.size()); }

  // To the peer that has most.
  std::size_t most_links() const;

  // Called in the exchange: the first so many bytes of every outgoing and incoming message are through.
  using Progress = std::function<void(std::size_t bytes)>;

  // Carries out all transfers at the same time in the caller's thread. Callers in several threads take turns;
  // that two ranks take the same turns is the callers' business. ClusterError names the peer that closed, is
  // out of step or stalled past the timeout, and the address of a link that failed where there are several;
  // every later exchange throws the same at once. `progress` hears of limits::reduce_slice_bytes or more at
  // once, not of the end.
  void exchange(const Operation& operation, std::span<const Transfer> transfers,
                const Progress& progress = {});

  // Throws what broke the mesh, if anything did; waits for nothing.
  void check() const;

  // From now on this is the wait for a peer with which nothing moves.
  void set_timeout(std::chrono::milliseconds timeout);
  LinkUse use();

 private:
  void run(std::vector<Flow>& flows, std::chrono::microseconds spin, const Progress& progress) const;
  void sleep(const std::vector<Flow>& flows, Deadline now) const;
  void check_patience(const std::vector<Flow>& flows, Deadline now) const;

  int rank_;
  std::vector<Peer> peers_;
  std::chrono::milliseconds timeout_;
  LinkUse use_;
  std::mutex mutex_;
  std::string breakage_;  // what broke it; written once, before the flag
  std::atomic<bool> broken_ = false;
};

}  // namespace tandem::parallel
