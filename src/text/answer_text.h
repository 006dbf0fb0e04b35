// The text of an answer as its tokens arrive, up to the first stop string.
#pragma once

#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace tandem::text {

class AnswerText {
 public:
  // `tokenizer` must outlive it. An answer ends before the first of `stops` (none empty) that appears in it.
  AnswerText(const Tokenizer& tokenizer, std::vector<std::string> stops);

  // The text that is certain after this token: whole characters, and nothing that may yet become a stop
  // string.
  std::string push(int id);
  // What was held back, once no more tokens come; empty after a stop string.
  std::string finish();
  // A stop string has appeared; what push() gave ends right before it.
  bool stopped() const { return stopped_; }

 private:
  std::string release(bool at_end);

  TokenStream stream_;
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace tandem::text
