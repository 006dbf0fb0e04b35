#include "parallel/tcp_socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string_view>

#if defined(__linux__)
#include <linux/sockios.h>
#endif

namespace tandem::parallel {

using std::chrono::steady_clock;

namespace {

// `ask`: getsockname or getpeername.
template <typename Ask>
std::string address_by(Ask ask, int descriptor) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  char text[NI_MAXHOST] = {};
  if (ask(descriptor, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
      ::getnameinfo(reinterpret_cast<sockaddr*>(&address), size, text, sizeof(text), nullptr, 0,
                    NI_NUMERICHOST) != 0) {
    return "";
  }
  const std::string_view mapped = "::ffff:", whole = text;  // IPv4 on a socket of IPv6
  return std::string(whole.starts_with(mapped) ? whole.substr(mapped.size()) : whole);
}

}  // namespace

TcpSocket::TcpSocket(int descriptor) : descriptor_(descriptor) {
  if (descriptor < 0) return;
  const int on = 1;
  ::fcntl(descriptor, F_SETFD, FD_CLOEXEC);
  ::fcntl(descriptor, F_SETFL, ::fcntl(descriptor, F_GETFL) | O_NONBLOCK);
  ::setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  ::setsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
#if defined(SO_NOSIGPIPE)
  ::setsockopt(descriptor, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
#endif
}

std::string TcpSocket::own_address() const { return address_by(::getsockname, descriptor_); }

std::string TcpSocket::peer_address() const { return address_by(::getpeername, descriptor_); }

std::size_t TcpSocket::queued_bytes() const {
  int bytes = 0;
#if defined(SO_NWRITE)
  socklen_t size = sizeof(bytes);
  ::getsockopt(descriptor_, SOL_SOCKET, SO_NWRITE, &bytes, &size);
#else
  ::ioctl(descriptor_, SIOCOUTQ, &bytes);
#endif
  return static_cast<std::size_t>(std::max(bytes, 0));
}

TcpSocket::~TcpSocket() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

bool TcpSocket::send_all(const void* bytes, std::size_t size) const {
  return ::send(descriptor_, bytes, size, no_signal) == static_cast<ssize_t>(size);
}

int timeout_ms(Deadline deadline) {
  using std::chrono::milliseconds;
  const auto left = std::chrono::ceil<milliseconds>(deadline - steady_clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 1'000'000));
}

}  // namespace tandem::parallel
