#include "parallel/tcp_links.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "base/error.h"
#include "base/limits.h"
#include "parallel/ranks.h"
#include "parallel/tcp_pace.h"

namespace tandem::parallel {
namespace {

TEST(TcpLinks, ANetworkContainsWhatItsPrefixSays) {
  struct {
    const char* own;
    int bits;
    const char* other;
    bool contained;
  } const rows[] = {{"10.0.0.1", 24, "10.0.0.2", true},   {"10.0.0.1", 24, "10.0.1.2", false},
                    {"10.0.0.1", 23, "10.0.1.2", true},   {"10.0.0.1", 31, "10.0.0.2", false},
                    {"10.0.0.1", 32, "10.0.0.1", true},   {"10.0.0.1", 32, "10.0.0.0", false},
                    {"10.0.0.1", 0, "192.168.1.1", true}, {"fd00::1", 64, "fd00::2", true},
                    {"fd00::1", 64, "fd00:1::2", false},  {"10.0.0.1", 0, "fd00::2", false},
                    {"10.0.0.1", 24, "no address", false}};
  for (const auto& row : rows) {
    EXPECT_EQ(contains({"eth0", row.own, row.bits}, row.other), row.contained)
        << row.own << "/" << row.bits << " " << row.other;
  }
}

TEST(TcpLinks, FurtherLinksAreCablesOfTheirOwn) {
  const Network lan{"eth0", "192.168.1.5", 24}, lan_6{"eth0", "fd01::5", 64},
      wifi{"wlan0", "192.168.1.6", 24}, cable{"en1", "10.0.1.1", 24}, cable_2{"en2", "10.0.2.1", 24},
      loopback{"lo", "127.0.0.1", 8, true}, bridge{"docker0", "172.17.0.1", 16};
  using Texts = std::vector<std::string>;
  struct {
    const char* name;
    std::vector<Network> networks;
    Texts peer, first, links;
  } const rows[] = {
      {"two cables and the network",
       {lan, cable, cable_2},
       {"192.168.1.9", "10.0.1.2", "10.0.2.2"},
       {"192.168.1.5", "192.168.1.9"},
       {"10.0.1.2", "10.0.2.2"}},
      {"the first is a cable",
       {lan, cable, cable_2},
       {"10.0.2.2", "192.168.1.9"},
       {"10.0.2.1", "10.0.2.2"},
       {"192.168.1.9"}},
      {"two interfaces in one subnet",
       {lan, wifi},
       {"192.168.1.9", "192.168.1.10"},
       {"192.168.1.5", "192.168.1.9"},
       {}},
      {"two addresses of one interface",
       {lan, lan_6},
       {"192.168.1.9", "fd01::9"},
       {"192.168.1.5", "192.168.1.9"},
       {}},
      {"a subnet of containers on both",
       {lan, bridge},
       {"192.168.1.9", "172.17.0.1"},
       {"192.168.1.5", "192.168.1.9"},
       {}},
      {"the same machine",
       {lan, cable, loopback},
       {"192.168.1.5", "10.0.1.1", "127.0.0.1"},
       {"192.168.1.5", "192.168.1.5"},
       {}},
      {"loopback", {lan, loopback}, {"192.168.1.9", "127.0.0.2"}, {"192.168.1.5", "192.168.1.9"}, {}},
      {"through a gateway", {lan, cable}, {"8.8.8.8", "10.0.1.2"}, {"192.168.1.5", "8.8.8.8"}, {"10.0.1.2"}},
  };
  for (const auto& row : rows)
    EXPECT_EQ(further_links(row.networks, row.peer, row.first), row.links) << row.name;
  std::vector<Network> many;
  Texts peer;
  for (int i = 0; i < 20; ++i) {
    many.push_back({fmt::format("en{}", i), fmt::format("10.0.{}.1", i), 24});
    peer.push_back(fmt::format("10.0.{}.2", i));
  }
  EXPECT_EQ(further_links(many, peer, {"10.0.0.1", "10.0.0.2"}).size(), limits::links - 1);
}

TEST(TcpLinks, AddressesAreTriedFromTheFastestCableToLoopback) {
  const TcpListener listener({{"lo", "127.0.0.1", 8, true},
                              {"wlan0", "192.168.0.2", 24},
                              {"eth0", "10.0.0.2", 24, false, 10'000},
                              {"eth0", "fd00::2", 64, false, 10'000},
                              {"thunderbolt0", "169.254.1.2", 16, false, 20'000}});
  EXPECT_EQ(listener.endpoint().addresses,
            (std::vector<std::string>{"169.254.1.2", "10.0.0.2", "fd00::2", "192.168.0.2", "127.0.0.1"}));
}

TEST(TcpPace, AChunkGoesWhereItIsNotWaitedFor) {
  const auto link = [](double mb_per_s, std::size_t queued) {
    Pace pace;
    pace.bytes_per_s = mb_per_s * 1e6;
    pace.known_s = 1;
    pace.queued = queued;
    return pace;
  };
  struct {
    const char* name;
    std::array<Pace, 2> links;
    std::size_t left;
    bool first, second;
  } const rows[] = {
      {"equal, much left", {link(100, 0), link(100, 0)}, 10'000'000, true, true},
      {"equal, one chunk left", {link(100, 0), link(100, 50'000)}, 60'000, true, false},
      {"slow, much left", {link(2000, 0), link(10, 0)}, 100'000'000, true, true},
      {"slow, little left", {link(2000, 0), link(10, 0)}, 1'000'000, true, false},
      {"slow, but the other has a queue", {link(100, 900'000), link(25, 0)}, 60'000, false, true},
      {"a full queue", {link(100, 1'000'000), link(100, 0)}, 10'000'000, false, true},
  };
  for (const auto& row : rows) {
    EXPECT_EQ(takes_chunk(row.links, 0, row.left), row.first) << row.name;
    EXPECT_EQ(takes_chunk(row.links, 1, row.left), row.second) << row.name;
  }
}

TEST(TcpPace, MeasuresWhileTheLinkIsBusy) {
  Pace pace;
  Deadline now{};
  std::uint64_t delivered = 0;
  for (int i = 0; i < 1000; ++i) {  // 50 MB/s in steps of a millisecond, and a pause every tenth
    if (i % 10 == 0) {
      start_message({&pace, 1});
      now += milliseconds(500);
    }
    observe(pace, delivered + 200'000, 200'000, now);
    now += milliseconds(1);
    delivered += 50'000;
  }
  EXPECT_NEAR(pace.bytes_per_s, 50e6, 1e5);
  for (int i = 0; i < 1000; ++i) observe(pace, delivered + 200'000, 200'000, now += milliseconds(1));
  EXPECT_LT(pace.bytes_per_s, 50e3) << "it stands still";
  EXPECT_GT(pace.bytes_per_s, 0);
}

TEST(TcpPace, ALinkIsTriedAgain) {
  std::array<Pace, 2> links;
  links[0].bytes_per_s = 1e9;
  links[0].known_s = 1;
  start_message(links);
  EXPECT_EQ(links[1].bytes_per_s, 1e9) << "unknown: as fast as the other";
  EXPECT_FALSE(links[1].known_s > 0);
  links[1].bytes_per_s = 1e6;  // as it was once
  links[1].known_s = 1;
  EXPECT_FALSE(takes_chunk(links, 1, 10'000'000));
  int messages = 0;
  for (; messages < 2000 && !takes_chunk(links, 1, 10'000'000); ++messages) start_message(links);
  EXPECT_GT(messages, 50);
  EXPECT_LT(messages, 500);
  for (; messages < 2000; ++messages) start_message(links);
  EXPECT_EQ(links[1].bytes_per_s, 1e9) << "no faster than the fastest";
  for (int i = 0; i < 80; ++i)  // 1 MB/s: what is measured then counts at once
    observe(links[1], 100'000 + 1000 * i, 100'000, Deadline() + milliseconds(i));
  EXPECT_LT(links[1].bytes_per_s, 50e6);
}

}  // namespace
}  // namespace tandem::parallel
