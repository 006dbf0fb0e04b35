#include "parallel/tcp_group.h"

#include <gtest/gtest.h>
#include <mlx/array.h>
#include <mlx/distributed/ops.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "base/error.h"
#include "parallel/broadcast.h"
#include "parallel/ranks.h"

namespace tandem::parallel {
namespace {

namespace mx = mlx::core;

template <typename T>
using Values = std::vector<std::conditional_t<std::is_same_v<T, bool>, std::uint8_t, T>>;

// Rank `rank`'s input: fractions whose sum depends on the order and the rounding, integers that wrap around.
template <typename T>
Values<T> values_of(int rank, std::size_t size) {
  Values<T> values(size);
  std::uint64_t state = 1000u * size + rank + 1;
  for (auto& value : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    if constexpr (std::is_same_v<T, bool>) {
      value = state >> 33 & 1;
    } else if constexpr (std::is_integral_v<T>) {
      value = static_cast<T>(state >> 20);
    } else {
      value = static_cast<T>(static_cast<float>(state >> 40) / static_cast<float>(1 << 20) - 8.0f);
    }
  }
  return values;
}

template <typename T>
mx::Dtype dtype_of() {
  if constexpr (std::is_same_v<T, double>) return mx::float64;  // MLX's own mapping makes a double float32
  return mx::TypeToDtype<T>();
}

template <typename T>
mx::array array_of(const Values<T>& values) {
  return mx::array(reinterpret_cast<const T*>(values.data()), {static_cast<int>(values.size())},
                   dtype_of<T>());
}

enum class Reduce { sum, max, min };

// One element of every rank reduced in rank order, in float32 for halves.
template <typename T>
auto reduced(Reduce how, const std::vector<Values<T>>& inputs, std::size_t i) {
  constexpr bool half = std::is_same_v<T, mx::float16_t> || std::is_same_v<T, mx::bfloat16_t>;
  using Wide = std::conditional_t<half, float, std::conditional_t<std::is_integral_v<T>, std::int64_t, T>>;
  auto total = static_cast<Wide>(static_cast<T>(inputs[0][i]));
  for (std::size_t rank = 1; rank < inputs.size(); ++rank) {
    const auto value = static_cast<Wide>(static_cast<T>(inputs[rank][i]));
    if (how != Reduce::sum) {
      const bool bigger = std::is_same_v<T, std::uint64_t>
                              ? static_cast<std::uint64_t>(value) > static_cast<std::uint64_t>(total)
                              : value > total;
      if (bigger == (how == Reduce::max)) total = value;
    } else if constexpr (std::is_integral_v<Wide>) {
      total = static_cast<Wide>(static_cast<std::uint64_t>(total) + static_cast<std::uint64_t>(value));
    } else {
      total = total + value;
    }
  }
  return static_cast<T>(total);
}

template <typename T>
Values<T> reduce_all(Reduce how, const std::vector<Values<T>>& inputs, std::size_t first, std::size_t count) {
  Values<T> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = reduced<T>(how, inputs, first + i);
  return out;
}

template <typename T>
void expect_bits(mx::array got, const Values<T>& expected, const std::string& what) {
  mx::eval(got);
  ASSERT_EQ(got.size(), expected.size()) << what;
  const auto bytes = expected.size() * sizeof(T);
  EXPECT_TRUE(bytes == 0 || std::memcmp(got.data<char>(), expected.data(), bytes) == 0) << what;
}

template <typename T>
void check_type(const mx::distributed::Group& group, std::size_t size) {
  const int ranks = group.size(), rank = group.rank();
  std::vector<Values<T>> inputs;
  Values<T> gathered;
  for (int i = 0; i < ranks; ++i) {
    inputs.push_back(values_of<T>(i, size));
    gathered.insert(gathered.end(), inputs.back().begin(), inputs.back().end());
  }
  const mx::array own = array_of<T>(inputs[rank]);
  const std::string what = std::to_string(ranks) + " ranks, " + std::to_string(size) + " elements of " +
                           std::to_string(sizeof(T)) + " bytes, type " +
                           std::to_string(static_cast<int>(own.dtype().val()));
  const auto whole = [&](Reduce how) { return reduce_all<T>(how, inputs, 0, size); };
  expect_bits<T>(mx::distributed::all_sum(own, group), whole(Reduce::sum), "all_sum of " + what);
  expect_bits<T>(mx::distributed::all_gather(own, group), gathered, "all_gather of " + what);
  if (size > 10'000) return;  // the same code
  expect_bits<T>(mx::distributed::all_max(own, group), whole(Reduce::max), "all_max of " + what);
  expect_bits<T>(mx::distributed::all_min(own, group), whole(Reduce::min), "all_min of " + what);
  const std::size_t part = size / ranks;
  const auto divisible = mx::slice(own, {0}, {static_cast<int>(part) * ranks});
  expect_bits<T>(mx::distributed::sum_scatter(divisible, group),
                 reduce_all<T>(Reduce::sum, inputs, rank * part, part), "sum_scatter of " + what);
}

class TcpGroupOfRanks : public testing::TestWithParam<int> {};

TEST_P(TcpGroupOfRanks, HoldsTheSameBitsInRankOrder) {
  const int ranks = GetParam();
  const MeetingPoint meeting(ranks);
  const auto errors = run_ranks(ranks, [&](int rank) {
    const auto group = meeting.group(rank);
    for (const std::size_t size : {0u, 1u, 7u, 1000u, 1'000'003u}) {
      check_type<bool>(group, size);
      check_type<std::uint8_t>(group, size);
      check_type<std::uint16_t>(group, size);
      check_type<std::uint32_t>(group, size);
      check_type<std::uint64_t>(group, size);
      check_type<std::int8_t>(group, size);
      check_type<std::int16_t>(group, size);
      check_type<std::int32_t>(group, size);
      check_type<std::int64_t>(group, size);
      check_type<mx::float16_t>(group, size);
      check_type<mx::bfloat16_t>(group, size);
      check_type<float>(group, size);
      check_type<double>(group, size);
    }
  });
  EXPECT_EQ(errors, std::vector<std::string>(ranks));
}

INSTANTIATE_TEST_SUITE_P(Ranks, TcpGroupOfRanks, testing::Values(1, 2, 3, 4, 5));

std::vector<float> floats(mx::array x) {
  x = mx::contiguous(x);
  mx::eval(x);
  return {x.data<float>(), x.data<float>() + x.size()};
}

TEST(TcpGroup, TakesInputsOfAnyLayout) {
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    const auto x = mx::reshape(mx::arange(6.0f), {2, 3});
    EXPECT_EQ(floats(mx::distributed::all_sum(mx::transpose(x), group)),
              (std::vector<float>{0, 6, 2, 8, 4, 10}));
    EXPECT_EQ(floats(mx::distributed::all_sum(mx::slice(x, {0, 1}, {2, 2}), group)),
              (std::vector<float>{2, 8}));
    EXPECT_EQ(floats(mx::distributed::all_sum(mx::broadcast_to(mx::array(1.5f), {3}), group)),
              (std::vector<float>{3, 3, 3}));
    EXPECT_EQ(floats(mx::distributed::all_sum(x + static_cast<float>(rank), group)),  // in place
              (std::vector<float>{1, 3, 5, 7, 9, 11}));
    EXPECT_EQ(mx::distributed::all_gather(x, group).shape(), (mx::Shape{4, 3}));
    EXPECT_EQ(floats(mx::distributed::sum_scatter(x, group)),
              rank == 0 ? (std::vector<float>{0, 2, 4}) : (std::vector<float>{6, 8, 10}));
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
}

TEST(TcpGroup, SendsAroundARing) {
  const MeetingPoint meeting(3);
  const auto errors = run_ranks(3, [&](int rank) {
    const auto group = meeting.group(rank);
    auto x = mx::full({1000}, static_cast<float>(rank));
    if (rank > 0) x = x + mx::distributed::recv({1000}, mx::float32, rank - 1, group);
    const auto sent = mx::distributed::send(x, (rank + 1) % 3, group);
    mx::eval(sent);
    if (rank == 0) {
      EXPECT_EQ(floats(mx::distributed::recv_like(x, 2, group)), std::vector<float>(1000, 3));
    }
  });
  EXPECT_EQ(errors, std::vector<std::string>(3));
}

TEST(TcpGroup, SplitsByColourInTheOrderOfTheKeys) {
  const MeetingPoint meeting(5);
  const auto errors = run_ranks(5, [&](int rank) {
    const auto group = meeting.group(rank);
    const auto parity = group.split(rank % 2, 10 - rank);  // {4, 2, 0} and {3, 1}
    EXPECT_EQ(parity.size(), rank % 2 == 0 ? 3 : 2);
    EXPECT_EQ(parity.rank(), rank % 2 == 0 ? (4 - rank) / 2 : (3 - rank) / 2);
    const auto own = mx::array({static_cast<float>(rank)});
    EXPECT_EQ(floats(mx::distributed::all_gather(own, parity)),
              rank % 2 == 0 ? (std::vector<float>{4, 2, 0}) : (std::vector<float>{3, 1}));
    EXPECT_EQ(floats(mx::distributed::all_sum(own, group)), std::vector<float>{10});
    const auto nested = parity.split(parity.rank() / 2);  // {4, 2}, {0}, {3, 1}
    EXPECT_EQ(floats(mx::distributed::all_sum(own, nested)), std::vector<float>{rank == 0       ? 0.0f
                                                                                : rank % 2 == 0 ? 6.0f
                                                                                                : 4.0f});
    EXPECT_EQ(nested.split(0).size(), nested.size());
    const auto alone = group.split(rank);
    EXPECT_EQ(alone.size(), 1);
    EXPECT_EQ(floats(mx::distributed::all_sum(own, alone)), std::vector<float>{static_cast<float>(rank)});
  });
  EXPECT_EQ(errors, std::vector<std::string>(5));
}

TEST(TcpGroup, SplitsAfterWhatWasEnqueued) {
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    const auto total = mx::distributed::all_sum(mx::full({100'000}, 1.0f), group);
    mx::async_eval(total);
    if (rank == 0) std::this_thread::sleep_for(milliseconds(50));
    const auto part = group.split(0);
    EXPECT_EQ(floats(mx::distributed::all_sum(mx::array({1.0f}), part)), std::vector<float>{2});
    EXPECT_EQ(floats(total), std::vector<float>(100'000, 2));
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
}

TEST(TcpGroup, SplitsSoManyTimes) {
  const auto group = single_rank_group();
  for (int i = 0; i < limits::splits_of_a_group; ++i) EXPECT_EQ(group.split(0).size(), 1);
  EXPECT_THROW(group.split(0), std::invalid_argument);
}

TEST(TcpGroup, AloneIsTheIdentity) {
  const auto group = single_rank_group();
  const auto x = mx::array({1.0f, 2.0f});
  EXPECT_EQ(group.rank(), 0);
  EXPECT_EQ(group.size(), 1);
  EXPECT_EQ(floats(mx::distributed::all_sum(x, group)), (std::vector<float>{1, 2}));
  EXPECT_EQ(floats(mx::distributed::all_gather(x, group)), (std::vector<float>{1, 2}));
}

TEST(TcpGroup, OutlivesItsHandleWhileWorkIsQueued) {
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    const auto total = [&] {
      const auto group = meeting.group(rank);
      auto sum = mx::distributed::all_sum(mx::array({1.0f}), group);
      if (rank == 1) std::this_thread::sleep_for(milliseconds(50));
      mx::async_eval(sum);
      return sum;
    }();
    EXPECT_EQ(floats(total), std::vector<float>{2});
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
}

// What eval throws, "" for nothing; check() must throw the same as a ClusterError.
std::string eval_error(const mx::array& x, const mx::distributed::Group& group) {
  check(group);
  std::string message;
  try {
    mx::eval(x);
    return "";
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  try {
    check(group);
  } catch (const ClusterError& error) {
    EXPECT_EQ(message, error.what());
    return message;
  }
  return "check() does not know of: " + message;
}

TEST(TcpGroup, ALostRankIsThrownFromEvalAndFromEveryLaterOne) {
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    const auto subgroup = group.split(0);
    if (rank == 1) return;
    const std::string expected = "rank 1 closed the connection during all_sum";
    const auto x = mx::array({1.0f});
    const auto start = steady_clock::now();
    EXPECT_EQ(eval_error(mx::distributed::all_sum(x, group) * 2.0f, group), expected);
    for (const auto& broken : {group, subgroup}) {
      auto chain = x;
      for (int i = 0; i < 20; ++i)
        chain = mx::distributed::all_max(mx::distributed::all_sum(chain, broken), broken);
      EXPECT_THROW(mx::eval(chain), std::runtime_error);
      EXPECT_THROW(check(broken), ClusterError);
      EXPECT_THROW(broken.split(0), ClusterError);
      EXPECT_THROW(broadcast(broken, {1, 2, 3}, 0), ClusterError);
    }
    EXPECT_LT(seconds_since(start), 1);
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
}

TEST(TcpGroup, AStalledRankIsThrownAtTheDeadline) {
  const MeetingPoint meeting(2);
  std::atomic<bool> done{false};
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank, {milliseconds(5000), milliseconds(300)});
    if (rank == 1) {
      while (!done) std::this_thread::sleep_for(milliseconds(5));
      return;
    }
    const auto start = steady_clock::now();
    EXPECT_EQ(eval_error(mx::distributed::all_gather(mx::array({1.0f}), group), group),
              "rank 1 sent nothing for 0.3 s during all_gather");
    EXPECT_LT(seconds_since(start), 1);
    done = true;
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
}

TEST(TcpGroup, DifferentOperationsAreAnError) {
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    const auto x = mx::ones({4}, rank == 0 ? mx::float16 : mx::bfloat16);
    const std::string error = eval_error(mx::distributed::all_sum(x, group), group);
    EXPECT_TRUE(error.find("is out of step") != std::string::npos ||
                error.find("closed") != std::string::npos)
        << error;
    std::this_thread::sleep_for(milliseconds(50));
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
}

TEST(TcpGroup, AGroupAndItsSubgroupDoNotMix) {
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    const auto subgroup = group.split(0), other = group.split(0), nested = subgroup.split(0);
    const std::string error =
        eval_error(mx::distributed::all_sum(mx::ones({4}), rank == 0 ? other : nested), group);
    EXPECT_TRUE(error.find("is out of step") != std::string::npos ||
                error.find("closed") != std::string::npos)
        << error;
    std::this_thread::sleep_for(milliseconds(50));
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
}

TEST(TcpGroup, RefusesToReduceComplexNumbers) {
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    const auto x = mx::zeros({4}, mx::complex64);
    EXPECT_THROW(mx::eval(mx::distributed::all_sum(x, group)), std::invalid_argument);
    EXPECT_THROW(mx::eval(mx::distributed::sum_scatter(x, group)), std::invalid_argument);
    EXPECT_EQ(mx::distributed::all_gather(x, group).shape(0), 8);
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
}

float to_bfloat16(float value) { return static_cast<float>(static_cast<mx::bfloat16_t>(value)); }

TEST(TcpGroup, SumsMayTravelAsBfloat16) {
  for (const int ranks : {1, 2, 3, 5}) {
    const MeetingPoint meeting(ranks);
    for (const std::size_t size : {1U, 777U, 300'000U}) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, " << size);
      std::vector<Values<float>> inputs, sums(ranks);
      for (int rank = 0; rank < ranks; ++rank) inputs.push_back(values_of<float>(rank, size));
      const auto errors = run_ranks(ranks, [&](int rank) {
        const auto group = meeting.group(rank, {.wire = Wire::bfloat16});
        mx::array sum = mx::distributed::all_sum(array_of<float>(inputs[rank]), group, mx::Device::cpu);
        mx::eval(sum);
        sums[rank].assign(sum.data<float>(), sum.data<float>() + size);
        EXPECT_EQ(link_use(group).bytes > 0, ranks > 1);
      });
      for (const auto& error : errors) EXPECT_EQ(error, "");
      for (const auto& sum : sums) EXPECT_EQ(sum, sums[0]);
      if (ranks == 1) {
        EXPECT_EQ(sums[0], inputs[0]) << "nothing travels";
        continue;
      }
      const bool two_trips = ranks > 2 && size * 2 > limits::direct_reduce_bytes;
      for (std::size_t i = 0; i < size; i += 97) {
        float sum = 0;
        for (int rank = 0; rank < ranks; ++rank) sum += to_bfloat16(inputs[rank][i]);
        ASSERT_EQ(sums[0][i], two_trips ? to_bfloat16(sum) : sum) << i;
      }
    }
  }
}

TEST(TcpGroup, CountsWhatItSends) {
  const MeetingPoint meeting(2);
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    const auto before = link_use(group);
    mx::eval(mx::distributed::all_sum(mx::ones({1000}), group, mx::Device::cpu));
    const auto after = link_use(group);
    EXPECT_EQ(after.bytes - before.bytes, 4000U);
    EXPECT_EQ(after.collectives - before.collectives, 1U);
    EXPECT_GT(after.seconds, before.seconds);
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
}

TEST(TcpGroup, ALaterTimeoutHolds) {
  const MeetingPoint meeting(2);
  std::atomic<bool> over = false;
  const auto errors = run_ranks(2, [&](int rank) {
    const auto group = meeting.group(rank);
    if (rank == 1) {
      while (!over) std::this_thread::sleep_for(milliseconds(10));
      return;
    }
    set_timeout(group, milliseconds(200));
    const auto start = steady_clock::now();
    EXPECT_THROW(mx::eval(mx::distributed::all_sum(mx::ones({4}), group, mx::Device::cpu)),
                 std::runtime_error);
    EXPECT_LT(seconds_since(start), 5);
    over = true;
    check(group);
  });
  EXPECT_NE(errors[0].find("rank 1 sent nothing for 0.2 s"), std::string::npos) << errors[0];
}

}  // namespace
}  // namespace tandem::parallel
