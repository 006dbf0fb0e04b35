#include "text/answer_text.h"

#include <algorithm>

namespace tandem::text {
namespace {

// The length of the longest end of `text` that begins `stop`.
std::size_t overlap(const std::string& text, const std::string& stop) {
  for (std::size_t size = std::min(text.size(), stop.size() - 1); size > 0; --size) {
    if (text.compare(text.size() - size, size, stop, 0, size) == 0) return size;
  }
  return 0;
}

}  // namespace

AnswerText::AnswerText(const Tokenizer& tokenizer, std::vector<std::string> stops)
    : stream_(tokenizer, /*skip_special=*/true), stops_(std::move(stops)) {}

std::string AnswerText::push(int id) {
  if (stopped_) return {};
  held_ += stream_.push(id);
  return release(/*at_end=*/false);
}

std::string AnswerText::finish() {
  if (stopped_) return {};
  held_ += stream_.finish();
  return release(/*at_end=*/true);
}

std::string AnswerText::release(bool at_end) {
  std::size_t certain = held_.size();
  for (const auto& stop : stops_) {
    if (const auto found = held_.find(stop); found != std::string::npos) {
      stopped_ = true;
      certain = std::min(certain, found);
    }
  }
  if (!stopped_ && !at_end) {
    std::size_t unsure = 0;
    for (const auto& stop : stops_) unsure = std::max(unsure, overlap(held_, stop));
    certain -= unsure;
  }
  std::string text = held_.substr(0, certain);
  held_.erase(0, certain);
  return text;
}

}  // namespace tandem::text
