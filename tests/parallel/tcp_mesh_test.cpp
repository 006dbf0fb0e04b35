#include "parallel/tcp_mesh.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>

#include "base/error.h"
#include "parallel/ranks.h"

namespace tandem::parallel {
namespace {

constexpr Operation sum{FrameKind::all_sum};
const std::vector<std::string> none_of_two(2);

std::vector<char> bytes_from(int sender, int receiver, std::size_t size) {
  std::vector<char> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 31 + sender * 7 + receiver * 3);
  return bytes;
}

// Sends to and receives from every other rank; whether it got what was meant for it.
bool exchange_with_all(TcpMesh& mesh, const Operation& operation, std::size_t size) {
  std::vector<std::vector<char>> outgoing, incoming;
  for (int peer = 0; peer < mesh.size(); ++peer) {
    outgoing.push_back(bytes_from(mesh.rank(), peer, size));
    incoming.emplace_back(size);
  }
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < mesh.size(); ++peer) {
    if (peer != mesh.rank()) transfers.push_back({peer, outgoing[peer], incoming[peer]});
  }
  mesh.exchange(operation, transfers);
  for (int peer = 0; peer < mesh.size(); ++peer) {
    if (peer != mesh.rank() && incoming[peer] != bytes_from(peer, mesh.rank(), size)) return false;
  }
  return true;
}

TEST(TcpMesh, ExchangesEverySizeAmongEveryNumberOfRanks) {
  for (int ranks = 1; ranks <= 5; ++ranks) {
    const MeetingPoint meeting(ranks);
    const auto errors = run_ranks(ranks, [&](int rank) {
      auto mesh = meeting.mesh(rank);
      for (const std::size_t size : {0u, 1u, 7u, 4096u, 3'000'000u}) {
        EXPECT_TRUE(exchange_with_all(mesh, sum, size)) << ranks << " ranks, " << size << " bytes";
      }
    });
    EXPECT_EQ(errors, std::vector<std::string>(ranks));
  }
}

TEST(TcpMesh, SendsWithoutReceiving) {
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    auto mesh = meeting.mesh(rank);
    std::vector<char> bytes = rank == 0 ? bytes_from(0, 1, 1000) : std::vector<char>(1000);
    for (int i = 0; i < 3; ++i) {
      const Transfer transfer =
          rank == 0 ? Transfer{1, bytes, std::nullopt} : Transfer{0, std::nullopt, bytes};
      mesh.exchange({FrameKind::message}, {&transfer, 1});
    }
    EXPECT_EQ(bytes, bytes_from(0, 1, 1000));
  });
  EXPECT_EQ(errors, none_of_two);
}

TEST(TcpMesh, ThreadsOfARankTakeTurns) {
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    auto mesh = meeting.mesh(rank);
    const auto inner = run_ranks(3, [&](int) {
      for (int i = 0; i < 100; ++i) EXPECT_TRUE(exchange_with_all(mesh, sum, 100));
    });
    EXPECT_EQ(inner, std::vector<std::string>(3));
  });
  EXPECT_EQ(errors, none_of_two);
}

// Rank 0 exchanges 1000 bytes for a sum on group 0 as its second exchange; rank 1 does something else.
struct OutOfStep {
  const char* name;
  Operation operation;
  std::size_t size;
  const char* said;  // of what rank 1 sent
};

class TcpMeshOutOfStep : public testing::TestWithParam<OutOfStep> {};

TEST_P(TcpMeshOutOfStep, BothRanksNameBothOperations) {
  const MeetingPoint meeting(2);
  const auto start = steady_clock::now();
  const auto errors = run_ranks(2, [&](int rank) {
    auto mesh = meeting.mesh(rank);
    exchange_with_all(mesh, sum, 10);
    if (rank == 0) {
      exchange_with_all(mesh, sum, 1000);
    } else {
      exchange_with_all(mesh, GetParam().operation, GetParam().size);
    }
  });
  const std::string expected = "all_sum of 1000 bytes (type 0, group 0, number 1)";
  EXPECT_EQ(errors[0], std::string("rank 1 is out of step: it sent ") + GetParam().said +
                           ", this rank expects " + expected);
  // Rank 0 may have gone before its frame was read.
  if (errors[1].find("closed") == std::string::npos) {
    EXPECT_EQ(errors[1],
              "rank 0 is out of step: it sent " + expected + ", this rank expects " + GetParam().said);
  }
  EXPECT_LT(seconds_since(start), 1);
}

INSTANTIATE_TEST_SUITE_P(
    Table, TcpMeshOutOfStep,
    testing::Values(
        OutOfStep{"kind", {FrameKind::all_max}, 1000, "all_max of 1000 bytes (type 0, group 0, number 1)"},
        OutOfStep{"type", {FrameKind::all_sum, 3}, 1000, "all_sum of 1000 bytes (type 3, group 0, number 1)"},
        OutOfStep{
            "channel", {FrameKind::all_sum, 0, 2}, 1000, "all_sum of 1000 bytes (type 0, group 2, number 1)"},
        OutOfStep{"shorter", sum, 999, "all_sum of 999 bytes (type 0, group 0, number 1)"},
        OutOfStep{"empty", sum, 0, "all_sum of 0 bytes (type 0, group 0, number 1)"},
        OutOfStep{"longer", sum, 5'000'000, "all_sum of 5000000 bytes (type 0, group 0, number 1)"}),
    [](const auto& info) { return info.param.name; });

TEST(TcpMesh, RefusesBytesThatAreNoFrame) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  std::vector<std::vector<TcpSocket>> links(2);
  links[1].emplace_back(ends[0]);
  const TcpSocket other(ends[1]);
  TcpMesh mesh(0, std::move(links), milliseconds(1000));
  const std::string garbage(100, 'x');
  ASSERT_TRUE(other.send_all(garbage.data(), garbage.size()));
  try {
    exchange_with_all(mesh, sum, 10);
    FAIL();
  } catch (const ClusterError& error) {
    EXPECT_EQ(std::string(error.what()).find("rank 1 is out of step: it sent something that is no frame"),
              0u);
  }
}

TEST(TcpMesh, APeerThatGoesIsNamedAtOnceAndEverAfter) {
  const MeetingPoint meeting(3);
  const auto errors = run_ranks(3, [&](int rank) {
    auto mesh = std::make_unique<TcpMesh>(rank,
                                          connect_ranks(meeting.listener(rank), rank, meeting.endpoints, "",
                                                        steady_clock::now() + milliseconds(5000)),
                                          milliseconds(5000));
    exchange_with_all(*mesh, sum, 1000);
    if (rank == 2) return;
    const auto start = steady_clock::now();
    std::string first;
    try {
      exchange_with_all(*mesh, sum, 1000);
    } catch (const ClusterError& error) {
      first = error.what();
    }
    EXPECT_EQ(first, "rank 2 closed the connection during all_sum");
    EXPECT_LT(seconds_since(start), 1);
    std::this_thread::sleep_for(milliseconds(50));  // so that the other rank still sees this one
    exchange_with_all(*mesh, sum, 1000);
  });
  EXPECT_EQ(errors[0], "rank 2 closed the connection during all_sum");
  EXPECT_EQ(errors[1], "rank 2 closed the connection during all_sum");
}

TEST(TcpMesh, APeerThatStallsIsNamedAtTheDeadline) {
  const MeetingPoint meeting(3);
  std::atomic<int> waiting{2};
  const auto errors = run_ranks(3, [&](int rank) {
    auto mesh = meeting.mesh(rank, milliseconds(400));
    if (rank == 1) {
      while (waiting > 0) std::this_thread::sleep_for(milliseconds(5));
      return;
    }
    const auto start = steady_clock::now();
    try {
      exchange_with_all(mesh, {FrameKind::all_gather}, 100);
    } catch (const ClusterError& error) {
      EXPECT_EQ(std::string(error.what()), "rank 1 sent nothing for 0.4 s during all_gather");
    }
    EXPECT_GE(seconds_since(start), 0.4);
    EXPECT_LT(seconds_since(start), 1);
    const auto again = steady_clock::now();
    EXPECT_THROW(exchange_with_all(mesh, sum, 100), ClusterError);
    EXPECT_LT(seconds_since(again), 0.2) << "what is broken waits no more";
    --waiting;
    while (waiting > 0) std::this_thread::sleep_for(milliseconds(5));
  });
  EXPECT_EQ(errors, std::vector<std::string>(3));
  EXPECT_EQ(waiting, 0);
}

TEST(TcpMesh, APeerThatTakesNothingIsNamed) {
  const MeetingPoint meeting(2);
  std::atomic<bool> done{false};
  const auto errors = run_ranks(2, [&](int rank) {
    auto mesh = meeting.mesh(rank, milliseconds(300));
    if (rank == 1) {
      while (!done) std::this_thread::sleep_for(milliseconds(5));
      return;
    }
    const std::vector<char> more_than_buffers(64u << 20);
    const Transfer transfer{1, more_than_buffers, std::nullopt};
    const auto start = steady_clock::now();
    try {
      mesh.exchange({FrameKind::message}, {&transfer, 1});
    } catch (...) {
      EXPECT_LT(seconds_since(start), 0.5) << "what the kernel took last was no sign of the peer";
      done = true;
      throw;
    }
  });
  EXPECT_EQ(errors[0], "rank 1 took nothing for 0.3 s during send");
}

// A peer that echoes rank 0's frame, which is the one it expects, in pieces: each within the timeout, all
// beyond it.
TEST(TcpMesh, ASlowPeerIsWaitedForWhileSomethingMoves) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  std::vector<std::vector<TcpSocket>> links(2);
  links[1].emplace_back(ends[0]);
  const TcpSocket other(ends[1]);
  TcpMesh mesh(0, std::move(links), milliseconds(200));
  std::thread echo([&] {
    std::vector<char> frame(32 + 96);
    ASSERT_TRUE(receive_all(other, frame.data(), frame.size(), steady_clock::now() + milliseconds(1000)));
    for (int i = 0; i < 4; ++i) {
      std::this_thread::sleep_for(milliseconds(100));
      ASSERT_TRUE(other.send_all(frame.data() + 32 * i, 32));
    }
  });
  const std::vector<char> sent = bytes_from(0, 1, 96);
  std::vector<char> got(96);
  const Transfer transfer{1, sent, got};
  EXPECT_NO_THROW(mesh.exchange(sum, {&transfer, 1}));
  EXPECT_EQ(got, sent);
  echo.join();
}

TEST(TcpMesh, AHalfClosedConnectionIsAClosedOne) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  std::vector<std::vector<TcpSocket>> links(2);
  links[1].emplace_back(ends[0]);
  const TcpSocket other(ends[1]);
  TcpMesh mesh(0, std::move(links), milliseconds(5000));
  const char half_a_frame[10] = {'T', 'D', 'M', '3'};
  ASSERT_TRUE(other.send_all(half_a_frame, sizeof(half_a_frame)));
  ASSERT_EQ(::shutdown(other.descriptor(), SHUT_WR), 0);
  try {
    exchange_with_all(mesh, sum, 10);
    FAIL();
  } catch (const ClusterError& error) {
    EXPECT_STREQ(error.what(), "rank 1 closed the connection during all_sum");
  }
}

// A process that is killed or stopped while rank 0 waits for its next frame.
std::string error_while_waiting(int signal, milliseconds timeout) {
  const MeetingPoint meeting(2);
  const pid_t child = ::fork();
  if (child == 0) {
    auto mesh = meeting.mesh(1);
    exchange_with_all(mesh, sum, 1000);
    while (true) ::pause();
  }
  std::string message = "no error";
  {
    auto mesh = meeting.mesh(0, timeout);
    exchange_with_all(mesh, sum, 1000);
    std::thread killer([&] {
      std::this_thread::sleep_for(milliseconds(100));
      ::kill(child, signal);
    });
    try {
      exchange_with_all(mesh, sum, 16u << 20);
    } catch (const ClusterError& error) {
      message = error.what();
    }
    killer.join();
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  return message;
}

TEST(TcpMesh, AProcessKilledWhileOthersWaitIsNamed) {
  const auto start = steady_clock::now();
  EXPECT_EQ(error_while_waiting(SIGKILL, milliseconds(5000)), "rank 1 closed the connection during all_sum");
  EXPECT_LT(seconds_since(start), 2);
}

TEST(TcpMesh, AStoppedProcessIsNamedAtTheDeadline) {
  const auto start = steady_clock::now();
  EXPECT_EQ(error_while_waiting(SIGSTOP, milliseconds(500)), "rank 1 sent nothing for 0.5 s during all_sum");
  EXPECT_LT(seconds_since(start), 2);
}

}  // namespace
}  // namespace tandem::parallel
