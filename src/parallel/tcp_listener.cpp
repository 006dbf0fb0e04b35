#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/limits.h"
#include "parallel/tcp_group.h"

namespace tandem::parallel {
namespace {

// In the order in which a peer is to try them, for the first that answers carries small messages: the fastest
// cable first, loopback last.
std::vector<std::string> addresses_of(std::vector<Network> networks) {
  std::stable_sort(networks.begin(), networks.end(), [](const Network& a, const Network& b) {
    return a.loopback != b.loopback ? b.loopback : a.megabits_per_s > b.megabits_per_s;
  });
  std::vector<std::string> addresses;
  for (const auto& network : networks) addresses.push_back(network.address);
  return addresses;
}

// Bound and listening on a free port; -1 where the system has no such family.
int listen_on(int family, bool loopback_only, std::uint16_t& port) {
  const int descriptor = ::socket(family, SOCK_STREAM, 0);
  if (descriptor < 0) return -1;
  ::fcntl(descriptor, F_SETFD, FD_CLOEXEC);
  sockaddr_storage address{};
  socklen_t size = 0;
  const int off = 0;
  if (family == AF_INET6) {
    ::setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));  // IPv4 comes in there too
    auto& v6 = reinterpret_cast<sockaddr_in6&>(address);
    v6.sin6_family = AF_INET6;
    v6.sin6_addr = in6addr_any;
    size = sizeof(v6);
  } else {
    auto& v4 = reinterpret_cast<sockaddr_in&>(address);
    v4.sin_family = AF_INET;
    v4.sin_addr.s_addr = htonl(loopback_only ? INADDR_LOOPBACK : INADDR_ANY);
    size = sizeof(v4);
  }
  if (::bind(descriptor, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::listen(descriptor, limits::pending_connections) != 0 ||
      ::getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    ::close(descriptor);
    return -1;
  }
  port = ntohs(family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                  : reinterpret_cast<sockaddr_in&>(address).sin_port);
  return descriptor;
}

}  // namespace

TcpListener::TcpListener(bool loopback_only)
    : TcpListener(
          loopback_only ? std::vector<Network>{{"lo", "127.0.0.1", 8, /*loopback=*/true}} : own_networks(),
          loopback_only) {}

TcpListener::TcpListener(std::vector<Network> networks, bool loopback_only) : networks_(std::move(networks)) {
  if (!loopback_only) descriptor_ = listen_on(AF_INET6, false, endpoint_.port);
  if (descriptor_ < 0) descriptor_ = listen_on(AF_INET, loopback_only, endpoint_.port);
  if (descriptor_ < 0)
    throw ClusterError(fmt::format("cannot listen on a TCP port: {}", std::strerror(errno)));
  ::fcntl(descriptor_, F_SETFL, O_NONBLOCK);
  endpoint_.addresses = addresses_of(networks_);
}

TcpListener::~TcpListener() { close(); }

void TcpListener::close() {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = -1;
}

}  // namespace tandem::parallel
