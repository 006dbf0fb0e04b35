#include "weights/remote_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <stdexcept>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "parallel/broadcast.h"
#include "parallel/messages.h"
#include "parallel/tcp_group.h"

namespace tandem::weights {
namespace {

namespace mx = mlx::core;
using mx::distributed::Group;
using nlohmann::json;
using parallel::Transfer;

json receive_json(const Group& group, int peer) {
  return json::from_cbor(parallel::receive_from(group, peer));
}

Slice slice_from_json(const json& list) {
  Slice slice{list.at(0), list.at(1).get<std::vector<int>>(), list.at(2), {list.at(3), list.at(4)}};
  slice.element = static_cast<Element>(list.at(5).get<int>());
  const bool fits = slice.axis < static_cast<int>(slice.shape.size()) &&
                    (slice.axis < 0 || (0 <= slice.part.begin && slice.part.begin <= slice.part.end &&
                                        slice.part.end <= slice.shape[slice.axis]));
  if (!fits)
    throw ClusterError(fmt::format("a rank asks for a part of \"{}\" that is not there", slice.name));
  return slice;
}

// What one rank asked for, on its way there.
class Delivery {
 public:
  Delivery(const Checkpoint& checkpoint, int peer, const json& wanted)
      : checkpoint_(checkpoint), peer_(peer) {
    for (const auto& slice : wanted) slices_.push_back(slice_from_json(slice));
    read_ahead();
    step(0);
  }

  bool done() const { return !current_; }
  Transfer next() const { return {peer_, std::span(current_->data<char>() + sent_, chunk()), std::nullopt}; }
  void sent() { step(chunk()); }

 private:
  std::size_t chunk() const {
    return std::min<std::size_t>(current_->nbytes() - sent_, limits::read_chunk_bytes);
  }

  void read_ahead() {
    if (reading_ == slices_.size()) return;
    ahead_ = std::async(std::launch::async,
                        [this, index = reading_++] { return checkpoint_.read(slices_[index], [](auto) {}); });
  }

  // `bytes` of the current slice are through; the next one follows its last.
  void step(std::size_t bytes) {
    sent_ += bytes;
    while (!current_ || sent_ == current_->nbytes()) {
      current_.reset();
      sent_ = 0;
      if (!ahead_.valid()) return;
      current_ = ahead_.get();
      read_ahead();
    }
  }

  const Checkpoint& checkpoint_;
  int peer_;
  std::vector<Slice> slices_;
  std::size_t reading_ = 0;
  std::optional<mx::array> current_;
  std::size_t sent_ = 0;          // of it
  std::future<mx::array> ahead_;  // last: its thread uses the rest
};

// What each of `takers` asks for. Returns those that ask for nothing.
std::vector<int> deliver(const Group& group, const Checkpoint& checkpoint, const std::vector<int>& takers) {
  std::vector<int> idle;
  std::vector<std::unique_ptr<Delivery>> deliveries;
  for (const int taker : takers) {
    const json wanted = receive_json(group, taker);
    if (wanted.empty()) idle.push_back(taker);
    deliveries.push_back(std::make_unique<Delivery>(checkpoint, taker, wanted));
  }
  while (true) {
    std::erase_if(deliveries, [](const auto& delivery) { return delivery->done(); });
    if (deliveries.empty()) return idle;
    std::vector<Transfer> transfers;
    for (const auto& delivery : deliveries) transfers.push_back(delivery->next());
    parallel::exchange(group, std::move(transfers));
    for (const auto& delivery : deliveries) delivery->sent();
  }
}

}  // namespace

json to_json(const Slice& slice) {
  return {slice.name,       slice.shape,    slice.axis,
          slice.part.begin, slice.part.end, static_cast<int>(slice.element)};
}

Supply supply_of(const Group& group, bool has_files) {
  Supply supply{-1, {}};
  for (int rank = 0; rank < group.size(); ++rank) {
    const auto has = parallel::broadcast(group, {static_cast<std::uint8_t>(has_files)}, rank);
    if (has.at(0) == 0) {
      supply.takers.push_back(rank);
    } else if (supply.giver < 0) {
      supply.giver = rank;
    }
  }
  return supply;
}

void give_slices(const Group& group, const Checkpoint& checkpoint, const std::vector<int>& takers) {
  json tensors = json::object();
  for (const auto& [name, info] : checkpoint.tensors()) tensors[name] = {info.dtype, info.shape};
  const json model{{"config", read_json_file(checkpoint.folder() / "config.json")},
                   {"tensors", std::move(tensors)},
                   {"identity", checkpoint.identity()}};
  parallel::send_to(group, takers, json::to_cbor(model));
  const auto idle = deliver(group, checkpoint, takers);
  if (idle.empty()) return;
  // They read what they kept, without a word until they have done so or found damage.
  parallel::set_timeout(group, limits::kept_slices);
  deliver(group, checkpoint, idle);
}

Giving::Giving(Group group, std::shared_ptr<const Checkpoint> checkpoint, std::vector<int> takers) {
  std::packaged_task<void()> task([group = std::move(group), checkpoint = std::move(checkpoint),
                                   takers = std::move(takers)] { give_slices(group, *checkpoint, takers); });
  done_ = task.get_future();
  std::thread(std::move(task)).detach();
}

RemoteSource::RemoteSource(Group group, int giver) : group_(std::move(group)), giver_(giver) {
  json model = receive_json(group_, giver_);
  config_ = std::move(model.at("config"));
  identity_ = model.at("identity");
  for (const auto& [name, info] : model.at("tensors").items()) {
    TensorInfo tensor{info.at(0), info.at(1).get<std::vector<std::int64_t>>()};
    tensor.end = static_cast<std::uint64_t>(dtype_bytes(tensor.dtype).value_or(0));
    for (const auto extent : tensor.shape) tensor.end *= static_cast<std::uint64_t>(extent);
    tensors_.emplace(name, std::move(tensor));
  }
}

const TensorInfo& RemoteSource::info(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw InputError(
        fmt::format("the model's files have no tensor \"{}\", which its config.json asks for", name));
  }
  return found->second;
}

std::uint64_t RemoteSource::bytes(const Slice& slice) const { return slice_bytes(info(slice.name), slice); }

void RemoteSource::expect(const std::vector<Slice>& slices) {
  json list = json::array();
  for (const auto& slice : slices) list.push_back(to_json(slice));
  expected_ = slices;
  next_ = 0;
  // The giver may have to hear others out first.
  if (std::exchange(asked_, true)) parallel::set_timeout(group_, limits::kept_slices);
  parallel::send_to(group_, {giver_}, json::to_cbor(list));
}

mx::array RemoteSource::room_for(const Slice& slice) const {
  const mx::Dtype dtype =
      to_mlx(fmt::format("tensor \"{}\"", slice.name), info(slice.name).dtype, slice.element);
  return allocated(slice, dtype);
}

mx::array RemoteSource::receive(const Slice& slice, const OnBytes& on_bytes) const {
  auto made = room_for(slice);
  const std::uint64_t bytes = made.nbytes();
  for (std::uint64_t done = 0; done < bytes;) {
    const auto chunk = std::min<std::uint64_t>(bytes - done, limits::read_chunk_bytes);
    const Transfer transfer{giver_, std::nullopt, std::span(made.data<char>() + done, chunk)};
    parallel::exchange(group_, {transfer});
    done += chunk;
    received_bytes_ += chunk;
    on_bytes(chunk);
  }
  return made;
}

mx::array RemoteSource::receive_next(const OnBytes& on_bytes) const {
  auto array = ahead_.valid() ? ahead_.get() : receive(expected_[next_], on_bytes);
  if (++next_ < expected_.size()) {
    ahead_ = std::async(std::launch::async,
                        [this, on_bytes, &slice = expected_[next_]] { return receive(slice, on_bytes); });
  }
  return array;
}

mx::array RemoteSource::read(const Slice& slice, const OnBytes& on_bytes) const {
  auto found = early_.find(slice.name);
  while (found == early_.end()) {
    if (next_ == expected_.size())
      throw std::logic_error(fmt::format("tensor \"{}\" was not asked for", slice.name));
    const std::string& name = expected_[next_].name;
    auto array = receive_next(on_bytes);
    if (name == slice.name) return array;
    early_.emplace(name, std::move(array));
  }
  auto array = found->second;
  early_.erase(found);
  return array;
}

void RemoteSource::finish() {
  early_.clear();
  while (next_ < expected_.size()) receive_next([](auto) {});
}

}  // namespace tandem::weights
