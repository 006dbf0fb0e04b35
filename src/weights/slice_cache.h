// A rank's slices from another rank, kept on this machine's disk: the next start with the same files and the
// same split reads them there, by their checksums.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "weights/remote_source.h"
#include "weights/slice_file.h"

namespace tandem::weights {

class SliceCache : public Source {
 public:
  // `folder` is the model's own: it is made, and what it has of other versions of the giver's files goes once
  // there is something new. What cannot be kept is warned of, and the load goes on.
  SliceCache(std::unique_ptr<RemoteSource> remote, std::filesystem::path folder);

  bool has(const std::string& name) const override { return remote_->has(name); }
  std::uint64_t bytes(const Slice& slice) const override { return remote_->bytes(slice); }
  // Asks the giver for nothing where a file has them.
  void expect(const std::vector<Slice>& slices) override;
  // Of a file with damage, a warning is given, and it is deleted; this slice and all that are still to be
  // read come from the giver.
  mlx::core::array read(const Slice& slice, const OnBytes& on_bytes) const override;
  void finish() override;
  std::uint64_t received_bytes() const override { return remote_->received_bytes(); }

 private:
  void open(const std::vector<std::uint64_t>& sizes);
  void start_keeping(const std::vector<std::uint64_t>& sizes);
  bool read_kept(std::size_t index, mlx::core::array& slice) const;
  void keep(std::size_t index, const mlx::core::array& slice) const;
  void finish_keeping();

  std::unique_ptr<RemoteSource> remote_;
  std::filesystem::path folder_;
  std::filesystem::path file_;
  std::vector<Slice> slices_;
  std::map<std::string, std::size_t> index_;          // of slices_, by name
  mutable std::vector<bool> read_;                    // as slices_
  mutable std::unique_ptr<SliceFileReader> kept_;     // what is read there is not received
  mutable std::unique_ptr<SliceFileWriter> keeping_;  // what is received goes there
};

}  // namespace tandem::weights
