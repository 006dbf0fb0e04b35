#include "parallel/tcp_links.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <filesystem>
#include <fstream>

#include "base/limits.h"

namespace tandem::parallel {
namespace {

using Bytes = std::vector<std::uint8_t>;  // of an address or a mask, in network order

Bytes bytes_of(const sockaddr* address) {
  if (!address) return {};
  const auto copy = [](const auto& field) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&field);
    return Bytes(bytes, bytes + sizeof(field));
  };
  if (address->sa_family == AF_INET) return copy(reinterpret_cast<const sockaddr_in*>(address)->sin_addr);
  if (address->sa_family == AF_INET6) return copy(reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
  return {};
}

// Empty where the text is no address.
Bytes parse(const std::string& text) {
  const bool is_ipv6 = text.find(':') != std::string::npos;
  Bytes bytes(is_ipv6 ? sizeof(in6_addr) : sizeof(in_addr));
  return ::inet_pton(is_ipv6 ? AF_INET6 : AF_INET, text.c_str(), bytes.data()) == 1 ? bytes : Bytes{};
}

bool contains_any(const Network& network, const std::vector<std::string>& addresses) {
  return std::any_of(addresses.begin(), addresses.end(),
                     [&](const auto& address) { return contains(network, address); });
}

// Of an interface; 0 where the system does not say. macOS counts in 32 bits: 4295 stands for all that is
// faster.
int megabits_per_s(const std::string& interface, const ifaddrs* list) {
#ifdef __APPLE__
  for (const ifaddrs* entry = list; entry; entry = entry->ifa_next) {
    if (interface != entry->ifa_name || !entry->ifa_addr || entry->ifa_addr->sa_family != AF_LINK) continue;
    if (const auto* data = static_cast<const if_data*>(entry->ifa_data))
      return static_cast<int>(data->ifi_baudrate / 1'000'000);
  }
  return 0;
#else
  static_cast<void>(list);
  const std::filesystem::path folder = "/sys/class/net/" + interface;
  int megabits = 0;
  // A bridge or one end of a pair within the machine names a speed that nothing stands behind.
  if (std::filesystem::exists(folder / "device")) std::ifstream(folder / "speed") >> megabits;
  return std::max(0, megabits);
#endif
}

}  // namespace

std::vector<Network> own_networks() {
  std::vector<Network> networks;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return {{"lo", "127.0.0.1", 8, true}};
  for (const ifaddrs* entry = list; entry; entry = entry->ifa_next) {
    const Bytes bytes = bytes_of(entry->ifa_addr);
    if (bytes.empty() || !(entry->ifa_flags & IFF_UP)) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family == AF_INET6 &&
        IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr)) {
      continue;
    }
    char text[INET6_ADDRSTRLEN] = {};
    ::inet_ntop(family, bytes.data(), text, sizeof(text));
    int prefix_bits = 0;
    // macOS leaves the family of a mask out.
    if (entry->ifa_netmask) entry->ifa_netmask->sa_family = entry->ifa_addr->sa_family;
    for (const auto byte : bytes_of(entry->ifa_netmask)) prefix_bits += std::popcount(byte);
    networks.push_back({entry->ifa_name, text, prefix_bits, (entry->ifa_flags & IFF_LOOPBACK) != 0,
                        megabits_per_s(entry->ifa_name, list)});
  }
  ::freeifaddrs(list);
  return networks;
}

bool contains(const Network& network, const std::string& address) {
  const Bytes own = parse(network.address), other = parse(address);
  if (own.empty() || own.size() != other.size()) return false;
  for (int bit = 0; bit < network.prefix_bits; ++bit) {
    const std::uint8_t mask = 0x80 >> bit % 8;
    if ((own[bit / 8] ^ other[bit / 8]) & mask) return false;
  }
  return true;
}

std::vector<std::string> further_links(const std::vector<Network>& networks,
                                       const std::vector<std::string>& addresses,
                                       const std::vector<std::string>& first) {
  std::vector<Network> used;
  for (const auto& network : networks) {
    if (contains_any(network, first)) used.push_back(network);
  }
  const auto is_own = [&](const std::string& address) {
    return std::any_of(networks.begin(), networks.end(),
                       [&](const Network& network) { return network.address == address; });
  };
  std::vector<std::string> links;
  for (const auto& network : networks) {
    const bool same_cable = std::any_of(used.begin(), used.end(), [&](const Network& other) {
      return other.interface == network.interface || contains(other, network.address);
    });
    const auto address = std::find_if(addresses.begin(), addresses.end(), [&](const std::string& candidate) {
      return contains(network, candidate) && !is_own(candidate);
    });
    if (network.loopback || same_cable || address == addresses.end()) continue;
    if (links.size() + 1 == limits::links) break;
    links.push_back(*address);
    used.push_back(network);
  }
  return links;
}

}  // namespace tandem::parallel
