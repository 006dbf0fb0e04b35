// The networks that this machine is in, and over which of them a peer is reached.
#pragma once

#include <string>
#include <vector>

namespace tandem::parallel {

// One address of an interface that is up.
struct Network {
  std::string interface;
  std::string address;  // this machine's, numeric IPv4 or IPv6
  int prefix_bits = 0;
  bool loopback = false;
  // Of the interface, as the system names it; 0: it names none, as of Wi-Fi on Linux and of what is no
  // hardware.
  int megabits_per_s = 0;
};

// Link-local IPv6 is left out: it means nothing without the peer's name of the interface.
std::vector<Network> own_networks();

bool contains(const Network& network, const std::string& address);

// Where a peer with these addresses can be reached besides the connection that has the two ends `first`: an
// address for each further of `networks` that both are in. One network an interface and one interface a
// network, none that is loopback or that `first` is in: a link is a cable of its own. None of a peer that is
// on this machine. At most limits::links - 1.
std::vector<std::string> further_links(const std::vector<Network>& networks,
                                       const std::vector<std::string>& addresses,
                                       const std::vector<std::string>& first);

}  // namespace tandem::parallel
