// One rank's slices from a rank that has the model's files, over the group's own connections: weights travel
// once, and nobody receives more than it holds.
#pragma once

#include <mlx/distributed/distributed.h>

#include <future>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "weights/checkpoint.h"
#include "weights/source.h"

namespace tandem::weights {

// As it is asked for.
nlohmann::json to_json(const Slice& slice);

// Which rank gives slices of the model's files to which others.
struct Supply {
  int giver = -1;  // the first that has the files; -1: none has
  std::vector<int> takers;
};

// Every rank calls it, on any backend, and says whether its machine has the files.
Supply supply_of(const mlx::core::distributed::Group& group, bool has_files);

// Gives each of `takers`, ranks that have made a RemoteSource of this one, the slices that it asks for; to
// all at the same time, while the next slice of each is read. Who asks for none at first may ask again, for
// what it lacks. Returns when all have everything. InputError names the file that cannot be read;
// ClusterError as parallel::exchange().
void give_slices(const mlx::core::distributed::Group& group, const Checkpoint& checkpoint,
                 const std::vector<int>& takers);

// The same in a thread of its own, which outlives this where nobody waits. The group has nothing else under
// way until then.
class Giving {
 public:
  Giving(mlx::core::distributed::Group group, std::shared_ptr<const Checkpoint> checkpoint,
         std::vector<int> takers);
  // Until all have everything. Throws as give_slices().
  void wait() { done_.get(); }

 private:
  std::future<void> done_;
};

class RemoteSource : public Source {
 public:
  // Waits for rank `giver`'s config.json and table of tensors. The group is one of join_tcp_group(), and has
  // nothing else under way until finish(). ClusterError names the giver that is silent for the group's
  // timeout, here and below.
  RemoteSource(mlx::core::distributed::Group group, int giver);

  const nlohmann::json& config() const { return config_; }
  // Checkpoint::identity() of the giver's files.
  const std::string& identity() const { return identity_; }
  bool has(const std::string& name) const override { return tensors_.contains(name); }
  std::uint64_t bytes(const Slice& slice) const override;
  // Asks for them; they come one after the other in this order. Where they are none, the giver waits for a
  // second call.
  void expect(const std::vector<Slice>& slices) override;
  // One of expect()'s, once; the next one comes meanwhile. What comes before it is kept until it is read: the
  // closer the two orders, the less.
  mlx::core::array read(const Slice& slice, const OnBytes& on_bytes) const override;
  // Receives and drops what was not read.
  void finish() override;

  // Memory for a slice as it comes. InputError where it is of another dtype than its element.
  mlx::core::array room_for(const Slice& slice) const;
  std::uint64_t received_bytes() const override { return received_bytes_; }

 private:
  const TensorInfo& info(const std::string& name) const;
  mlx::core::array receive(const Slice& slice, const OnBytes& on_bytes) const;
  mlx::core::array receive_next(const OnBytes& on_bytes) const;

  mlx::core::distributed::Group group_;
  int giver_;
  nlohmann::json config_;
  std::string identity_;
  TensorTable tensors_;  // without places in files
  bool asked_ = false;
  std::vector<Slice> expected_;
  mutable std::size_t next_ = 0;  // of expected_
  mutable std::map<std::string, mlx::core::array> early_;
  mutable std::uint64_t received_bytes_ = 0;
  mutable std::future<mlx::core::array> ahead_;  // expected_[next_]; last: its thread uses the rest
};

}  // namespace tandem::weights
