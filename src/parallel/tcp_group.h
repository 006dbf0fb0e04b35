// A distributed::Group of MLX over TCP: a full mesh of connections, every rank to every other.
//
// Reductions are summed in rank order, so all ranks hold the same bits. The caller's thread (MLX's CPU
// stream) moves the data itself with non-blocking sockets; there is no helper thread. Each connection proves
// the group's secret before anything else crosses it: both ends send a 32-byte random nonce, then
// HMAC-SHA256(secret, role ‖ both nonces ‖ both ranks) (RFC 2104, FIPS 180-4); an end that cannot within
// limits::handshake is closed and the listener goes on.
#pragma once

#include <mlx/distributed/distributed.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/limits.h"

namespace tandem::parallel {

// Where a rank accepts its peers: every address it may be reached by, best first, and one port.
struct Endpoint {
  std::vector<std::string> addresses;  // numeric IPv4 or IPv6
  std::uint16_t port = 0;
};

// A bound, listening socket on a free port. The addresses of endpoint(): with `loopback_only`, 127.0.0.1
// alone; else every address of every interface that is up, loopback last.
class TcpListener {
 public:
  explicit TcpListener(bool loopback_only);
  ~TcpListener();
  TcpListener(const TcpListener&) = delete;
  TcpListener& operator=(const TcpListener&) = delete;

  const Endpoint& endpoint() const { return endpoint_; }
  int descriptor() const { return descriptor_; }

 private:
  int descriptor_ = -1;
  Endpoint endpoint_;
};

// Joins the group: rank r connects to every rank below it (each address in turn) and accepts every rank above
// it. Returns when all are connected and proved. Throws ClusterError that names the rank that is missing
// after limits::connect. The group's operations (all_sum, all_gather, all_max, all_min, sum_scatter, send,
// recv; `split` makes a subgroup over the same connections) throw ClusterError that names the rank that
// closed, fell out of step or stalled past `timeout`; MLX rethrows it where the result is evaluated.
mlx::core::distributed::Group join_tcp_group(const TcpListener& listener, int rank,
                                             const std::vector<Endpoint>& endpoints,
                                             const std::string& secret,
                                             std::chrono::milliseconds timeout = limits::collective);

// A group of one rank: every collective is the identity.
mlx::core::distributed::Group single_rank_group();

}  // namespace tandem::parallel
