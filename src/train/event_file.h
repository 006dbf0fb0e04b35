// TensorBoard's event files: records as TensorFlow writes them (tensorflow/core/lib/io/record_writer.h:
// length, its checksum, data, its checksum; masked CRC-32C), each an Event message
// (tensorflow/core/util/event.proto).
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tandem::train {

// Of the bytes (Castagnoli's polynomial, RFC 3720 appendix B.4).
std::uint32_t crc32c(std::string_view bytes);

class EventFile {
 public:
  // FOLDER/events.out.tfevents.SECONDS.HOST, new. A file that cannot be written is left out: `ok` says so.
  EventFile(const std::filesystem::path& folder, const std::string& host);

  // What other files of the folder have of later steps, of 0 all, counts no more (SessionLog.START).
  void begin_after(std::int64_t step);
  void add(std::int64_t step, const std::vector<std::pair<std::string, float>>& scalars);
  bool ok() const { return file_.good(); }

 private:
  void write(const std::string& event);

  std::ofstream file_;
};

}  // namespace tandem::train
