#include "cluster/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "base/error.h"

namespace tandem::cluster {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds patience{5000};

// Everything the child prints until it closes its stdout.
std::string output_of(ChildProcess& child) {
  std::string text;
  std::array<char, 4096> bytes;
  while (true) {
    pollfd polled{child.output(), POLLIN, 0};
    if (::poll(&polled, 1, static_cast<int>(patience.count())) <= 0) {
      ADD_FAILURE() << "the child says nothing more and does not end";
      return text;
    }
    const auto got = ::read(child.output(), bytes.data(), bytes.size());
    if (got <= 0) return text;
    text.append(bytes.data(), static_cast<std::size_t>(got));
  }
}

void write_to(const ChildProcess& child, const std::string& text) {
  ASSERT_EQ(::write(child.input(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
}

ChildProcess shell(const std::string& script) { return ChildProcess({"sh", "-c", script}); }

TEST(ChildProcessTest, HowItEndedIsDescribed) {
  const struct {
    const char* script;
    const char* ending;  // its start: the name of a signal is the system's
  } table[] = {{"exit 0", "exited with code 0"},
               {"exit 7", "exited with code 7"},
               {"exit 255", "exited with code 255"},
               {"kill -KILL $$", "was killed by signal 9 ("},
               {"kill -TERM $$", "was killed by signal 15 ("},
               {"kill -ABRT $$", "was killed by signal 6 ("},
               {"tandem-no-such-command 2>&-", "exited with code 127"}};
  for (const auto& row : table) {
    auto child = shell(row.script);
    const auto ending = child.wait(patience);
    ASSERT_TRUE(ending) << row.script;
    EXPECT_EQ(ending->substr(0, std::string(row.ending).size()), row.ending) << row.script;
    EXPECT_EQ(child.wait(milliseconds(0)), ending) << "asked again";
  }
}

TEST(ChildProcessTest, PipesCarryBytesBothWaysUntilStdinCloses) {
  ChildProcess child({"cat"});
  std::array<char, 16> nothing;
  EXPECT_EQ(::read(child.output(), nothing.data(), nothing.size()), -1);
  EXPECT_EQ(errno, EAGAIN);  // non-blocking
  write_to(child, std::string("line\nand \0 bytes", 16));
  EXPECT_FALSE(child.wait(milliseconds(20)));
  child.close_input();
  child.close_input();  // twice is once
  EXPECT_EQ(child.input(), -1);
  EXPECT_EQ(output_of(child), std::string("line\nand \0 bytes", 16));
  EXPECT_EQ(child.wait(patience), "exited with code 0");
}

TEST(ChildProcessTest, AFullPipeDoesNotBlockUs) {
  auto child = shell("sleep 60");
  const std::string much(1 << 20, 'x');
  ssize_t written = 0, sum = 0;
  for (int i = 0; i < 1000 && (written = ::write(child.input(), much.data(), much.size())) > 0; ++i)
    sum += written;
  EXPECT_EQ(written, -1);
  EXPECT_EQ(errno, EAGAIN);
  EXPECT_GT(sum, 0);
}

TEST(ChildProcessTest, ArgumentsArriveAsGiven) {
  ChildProcess child({"sh", "-c", "printf '%s|' \"$@\"", "sh", "a b", "", "$HOME", "'\""});
  EXPECT_EQ(output_of(child), "a b||$HOME|'\"|");
}

TEST(ChildProcessTest, AProgramThatCannotStartIsAClusterError) {
  const int before = ::fcntl(0, F_DUPFD, 3);
  ::close(before);
  for (const char* program : {"tandem-no-such-command", "/no/such/folder/tandem", "/", "/etc/passwd"}) {
    try {
      ChildProcess child({program, "worker"});
      ADD_FAILURE() << program << " started";
    } catch (const ClusterError& error) {
      EXPECT_NE(std::string(error.what()).find(program), std::string::npos) << error.what();
    }
  }
  const int after = ::fcntl(0, F_DUPFD, 3);
  ::close(after);
  EXPECT_EQ(before, after) << "a descriptor is left open";
}

TEST(ChildProcessTest, WaitGivesUpAfterItsTimeout) {
  auto child = shell("sleep 60");
  const auto start = steady_clock::now();
  EXPECT_FALSE(child.wait(milliseconds(100)));
  EXPECT_GE(steady_clock::now() - start, milliseconds(100));
  EXPECT_LT(steady_clock::now() - start, patience);
}

TEST(ChildProcessTest, TheDestructorKills) {
  pid_t pid = 0;
  const auto start = steady_clock::now();
  {
    // Deaf to end-of-file and to every signal that can be ignored.
    auto child = shell("trap '' TERM INT HUP PIPE; echo ready; while :; do sleep 1; done");
    pollfd polled{child.output(), POLLIN, 0};
    ASSERT_EQ(::poll(&polled, 1, static_cast<int>(patience.count())), 1);
    pid = child.pid();
    EXPECT_EQ(::kill(pid, 0), 0);
  }
  EXPECT_LT(steady_clock::now() - start, patience);
  EXPECT_EQ(::kill(pid, 0), -1);  // reaped, too
  EXPECT_EQ(errno, ESRCH);
}

TEST(ChildProcessTest, AMovedChildLivesOn) {
  ChildProcess first({"cat"});
  const pid_t pid = first.pid();
  {
    std::vector<ChildProcess> children;
    children.push_back(std::move(first));
    children.push_back(shell("exit 3"));  // moves the first again
    EXPECT_EQ(children[0].pid(), pid);
    EXPECT_EQ(first.pid(), -1);
    write_to(children[0], "still here");
    children[0].close_input();
    EXPECT_EQ(output_of(children[0]), "still here");
    EXPECT_EQ(children[1].wait(patience), "exited with code 3");
  }
}

// Were a pipe's end inherited by the second child, the first would never see end-of-file.
TEST(ChildProcessTest, ChildrenDoNotHoldEachOthersPipes) {
  ChildProcess first({"cat"}), second({"cat"});
  first.close_input();
  EXPECT_EQ(first.wait(patience), "exited with code 0");
  EXPECT_FALSE(second.wait(milliseconds(0)));
}

TEST(ChildProcessTest, ItHasItsOwnGroupAndDefaultSignals) {
  const auto held = ::signal(SIGPIPE, SIG_IGN);
  auto child = shell("echo ready; read line; kill -PIPE $$; exit 3");
  ::signal(SIGPIPE, held);
  EXPECT_EQ(::getpgid(child.pid()), child.pid());
  write_to(child, "go\n");
  const auto ending = child.wait(patience);
  ASSERT_TRUE(ending);
  EXPECT_EQ(ending->substr(0, 24), "was killed by signal 13 ");
}

TEST(ChildProcessTest, AChildThatSomeoneElseReapedIsGone) {
  auto child = shell("exit 4");
  ASSERT_EQ(::waitpid(child.pid(), nullptr, 0), child.pid());
  EXPECT_EQ(child.wait(patience), "is gone");
}

}  // namespace
}  // namespace tandem::cluster
