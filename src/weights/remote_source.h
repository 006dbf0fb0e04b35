// One rank's slices from a rank that has the model's files, over the group's own connections: weights travel
// once, and nobody receives more than it holds.
#pragma once

#include <mlx/distributed/distributed.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "weights/checkpoint.h"
#include "weights/source.h"

namespace tandem::weights {

// Which rank gives slices of the model's files to which others.
struct Supply {
  int giver = -1;  // the first that has the files; -1: none has
  std::vector<int> takers;
};

// Every rank calls it, on any backend, and says whether its machine has the files.
Supply supply_of(const mlx::core::distributed::Group& group, bool has_files);

// Gives each of `takers`, ranks that have made a RemoteSource of this one, the slices that it asks for; to
// all at the same time, while the next slice of each is read. Returns when all have everything. InputError
// names the file that cannot be read; ClusterError as parallel::exchange().
void give_slices(const mlx::core::distributed::Group& group, const Checkpoint& checkpoint,
                 const std::vector<int>& takers);

class RemoteSource : public Source {
 public:
  // Waits for rank `giver`'s config.json and table of tensors. The group is one of join_tcp_group(), and has
  // nothing else under way until finish(). ClusterError names the giver that is silent for the group's
  // timeout, here and below.
  RemoteSource(mlx::core::distributed::Group group, int giver);

  const nlohmann::json& config() const { return config_; }
  bool has(const std::string& name) const override { return tensors_.contains(name); }
  std::uint64_t bytes(const Slice& slice) const override;
  // Asks for them; they come one after the other in this order.
  void expect(const std::vector<Slice>& slices) override;
  // One of expect()'s, once. What comes before it is kept until it is read: the closer the two orders, the
  // less.
  mlx::core::array read(const Slice& slice, const OnBytes& on_bytes) const override;
  // Receives and drops what was not read.
  void finish() override;

  // Bytes of slices so far.
  std::uint64_t received_bytes() const { return received_bytes_; }

 private:
  const TensorInfo& info(const std::string& name) const;
  mlx::core::array receive(const Slice& slice, const OnBytes& on_bytes) const;

  mlx::core::distributed::Group group_;
  int giver_;
  nlohmann::json config_;
  TensorTable tensors_;  // without places in files
  std::vector<Slice> expected_;
  mutable std::size_t next_ = 0;  // of expected_
  mutable std::map<std::string, mlx::core::array> early_;
  mutable std::uint64_t received_bytes_ = 0;
};

}  // namespace tandem::weights
