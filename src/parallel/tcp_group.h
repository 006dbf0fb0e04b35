// A distributed::Group of MLX over TCP: a full mesh of connections, every rank to every other, one for each
// cable between their machines (parallel/tcp_links.h).
//
// Reductions are summed in rank order, so all ranks hold the same bits. The caller's thread (MLX's CPU
// stream) moves the data itself with non-blocking sockets; there is no helper thread. Each connection proves
// the group's secret before anything else crosses it (parallel/tcp_handshake.h). The data itself is neither
// encrypted nor authenticated.
#pragma once

#include <mlx/distributed/distributed.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "parallel/tcp_links.h"
#include "parallel/tcp_mesh.h"

namespace tandem::parallel {

// Where a rank accepts its peers: every address it may be reached by, best first, and one port.
struct Endpoint {
  std::vector<std::string> addresses;  // numeric IPv4 or IPv6
  std::uint16_t port = 0;
};

// A bound, listening socket on a free port. The addresses of endpoint(): with `loopback_only`, 127.0.0.1
// alone; else every address of every interface that is up, the fastest first and loopback last.
class TcpListener {
 public:
  explicit TcpListener(bool loopback_only);
  // Takes these for the networks of this machine: where the tests lay cables.
  explicit TcpListener(std::vector<Network> networks) : TcpListener(std::move(networks), false) {}
  ~TcpListener();
  TcpListener(const TcpListener&) = delete;
  TcpListener& operator=(const TcpListener&) = delete;

  const Endpoint& endpoint() const { return endpoint_; }
  // That further links to a peer are looked for in.
  const std::vector<Network>& networks() const { return networks_; }
  int descriptor() const { return descriptor_; }
  // Accepts nobody from now on; the port is free.
  void close();

 private:
  TcpListener(std::vector<Network> networks, bool loopback_only);

  std::vector<Network> networks_;
  int descriptor_ = -1;
  Endpoint endpoint_;
};

// What float32 sums are on their way as.
enum class Wire : std::uint8_t {
  float32,
  // Half the bytes: every rank's part is rounded, its own too, and added in float32; the sum is rounded as
  // well where three ranks or more reduce in parts (limits::direct_reduce_bytes).
  bfloat16,
};

struct TcpOptions {
  // The longest waits; tests take shorter ones.
  std::chrono::milliseconds connect = limits::connect;        // until all ranks are there
  std::chrono::milliseconds collective = limits::collective;  // of a peer with which nothing moves
  // The same on every rank.
  Wire wire = Wire::float32;
  std::size_t stripe_window_bytes = limits::stripe_window_bytes;
};

// Joins the group: rank r connects to every rank below it (each address in turn) and accepts every rank above
// it. Returns when all are connected and proved; ClusterError names the ranks that are missing after
// options.connect.
//
// The operations all_sum, all_max, all_min, all_gather, sum_scatter, send and recv of mlx/distributed/ops.h
// run on the CPU stream. Every rank calls the same ones in the same order; send returns once the kernel has
// the bytes. `split` makes a subgroup over the same connections, waits for all ranks and for the caller's CPU
// stream, and may be called limits::splits_of_a_group times on a group.
//
// A rank that closes, falls out of step or stalls ends the group: the operation and every later one, of
// subgroups too, throw a ClusterError that names it, at once. MLX carries the message, but not the type, from
// its stream to the thread that evaluates: eval, wait, synchronize or a later async_eval throws
// std::runtime_error, once or, with more operations queued, a few times. The arrays concerned then count as
// evaluated but hold undefined values: whoever catches drops them, and calls check() for the ClusterError.
mlx::core::distributed::Group join_tcp_group(const TcpListener& listener, int rank,
                                             const std::vector<Endpoint>& endpoints,
                                             const std::string& secret, const TcpOptions& options = {});

// Carries out messages to and from ranks of a tcp group, all at the same time, in the caller's thread, while
// none of its streams has a collective under way. What a rank sends to another is received in that order.
// ClusterError as a collective's.
void exchange(const mlx::core::distributed::Group& group, std::vector<Transfer> transfers);

// Throws the ClusterError that ended the group, if one did. Does nothing for groups of MLX's own backends.
void check(const mlx::core::distributed::Group& group);

// From now on options.collective is this. Like link_use(), it waits for an exchange under way in another
// thread. Does nothing for groups of MLX's own backends.
void set_timeout(const mlx::core::distributed::Group& group, std::chrono::milliseconds timeout);

// What the group's collectives and those of its subgroups have cost; zeros for groups of MLX's own backends.
LinkUse link_use(const mlx::core::distributed::Group& group);

// A group of one rank: every collective is the identity.
mlx::core::distributed::Group single_rank_group();

}  // namespace tandem::parallel
