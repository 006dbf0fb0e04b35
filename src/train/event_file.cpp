#include "train/event_file.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <chrono>

namespace tandem::train {
namespace {

// Protocol buffers' wire format: a field's number and kind, then its value.
enum class Wire : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

void put_varint(std::string& to, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) to.push_back(static_cast<char>(value | 0x80));
  to.push_back(static_cast<char>(value));
}

template <typename T>
void put_fixed(std::string& to, T value) {  // little-endian
  for (std::size_t i = 0; i < sizeof(T); ++i) to.push_back(static_cast<char>(value >> 8 * i));
}

void put_key(std::string& to, unsigned field, Wire wire) {
  put_varint(to, field << 3 | static_cast<unsigned>(wire));
}

void put_bytes(std::string& to, unsigned field, std::string_view bytes) {
  put_key(to, field, Wire::bytes);
  put_varint(to, bytes.size());
  to += bytes;
}

// Event: wall_time = 1, step = 2.
std::string begun_event(std::int64_t step) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  put_key(event, 1, Wire::fixed64);
  put_fixed(event, std::bit_cast<std::uint64_t>(now.count()));
  put_key(event, 2, Wire::varint);
  put_varint(event, static_cast<std::uint64_t>(step));
  return event;
}

std::uint32_t masked(std::uint32_t crc) { return (crc >> 15 | crc << 17) + 0xa282ead8U; }

constexpr std::array<std::uint32_t, 256> make_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    table[i] = i;
    for (int bit = 0; bit < 8; ++bit) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0x82f63b78U : 0);
  }
  return table;
}

std::filesystem::path path_of(const std::filesystem::path& folder, const std::string& host) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return folder / fmt::format("events.out.tfevents.{}.{}",
                              std::chrono::duration_cast<std::chrono::seconds>(now).count(), host);
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static constexpr auto table = make_table();
  std::uint32_t crc = 0xffffffffU;
  for (const char byte : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<unsigned char>(byte)) & 0xff];
  return ~crc;
}

EventFile::EventFile(const std::filesystem::path& folder, const std::string& host)
    : file_(path_of(folder, host), std::ios::binary) {
  std::string event = begun_event(0);
  put_bytes(event, 3, "brain.Event:2");  // file_version
  write(event);
}

void EventFile::begin_after(std::int64_t step) {
  std::string session;
  put_key(session, 1, Wire::varint);  // status
  put_varint(session, 1);             // START
  std::string event = begun_event(step > 0 ? step + 1 : 0);
  put_bytes(event, 7, session);
  write(event);
}

void EventFile::add(std::int64_t step, const std::vector<std::pair<std::string, float>>& scalars) {
  std::string summary;
  for (const auto& [tag, number] : scalars) {
    std::string value;
    put_bytes(value, 1, tag);
    put_key(value, 2, Wire::fixed32);  // simple_value
    put_fixed(value, std::bit_cast<std::uint32_t>(number));
    put_bytes(summary, 1, value);
  }
  std::string event = begun_event(step);
  put_bytes(event, 5, summary);
  write(event);
}

void EventFile::write(const std::string& event) {
  std::string record;
  put_fixed(record, static_cast<std::uint64_t>(event.size()));
  put_fixed(record, masked(crc32c(record)));
  record += event;
  put_fixed(record, masked(crc32c(event)));
  file_.write(record.data(), static_cast<std::streamsize>(record.size()));
  file_.flush();
}

}  // namespace tandem::train
