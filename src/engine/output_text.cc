#include "engine/output_text.h"

#include <algorithm>

namespace flywheel::engine {

OutputText::OutputText(const model::Tokenizer* tokenizer, std::vector<std::string> stop, StopInOutput keep)
    : stop_(std::move(stop)), keep_(keep) {
  if (tokenizer != nullptr) detokenizer_.emplace(*tokenizer);
}

OutputText::Piece OutputText::push(GeneratedToken token) {
  if (detokenizer_) held_ += detokenizer_->push(token.id);
  waiting_.push_back({std::move(token), out_bytes_ + held_.size()});
  return advance();
}

OutputText::Piece OutputText::push_silent(GeneratedToken token) {
  waiting_.push_back({std::move(token), out_bytes_ + held_.size()});
  return finish();
}

OutputText::Piece OutputText::finish() {
  if (detokenizer_) held_ += detokenizer_->finish();
  Piece piece = advance();
  give_out(piece, held_.size());
  for (Waiting& waiting : waiting_) piece.tokens.push_back(std::move(waiting.token));
  waiting_.clear();
  return piece;
}

OutputText::Piece OutputText::advance() {
  Piece piece;
  size_t first = std::string::npos, length = 0;
  for (const std::string& stop : stop_) {
    const size_t at = held_.find(stop);
    if (at < first) {
      first = at, length = stop.size();
      piece.stop_match = stop;
    }
  }
  if (first == std::string::npos) {
    give_out(piece, held_.size() - undecided());
    return piece;
  }
  piece.stopped = true;
  held_.resize(keep_ == StopInOutput::kKeep ? first + length : first);
  detokenizer_.reset();  // what follows the stop string is not text any more
  give_out(piece, held_.size());
  for (Waiting& waiting : waiting_) piece.tokens.push_back(std::move(waiting.token));
  waiting_.clear();
  return piece;
}

size_t OutputText::undecided() const {
  size_t most = 0;
  for (const std::string& stop : stop_) {
    for (size_t length = std::min(held_.size(), stop.size() - 1); length > most; --length) {
      if (held_.compare(held_.size() - length, length, stop, 0, length) == 0) most = length;
    }
  }
  return most;
}

void OutputText::give_out(Piece& piece, size_t bytes) {
  piece.text.append(held_, 0, bytes);
  held_.erase(0, bytes);
  out_bytes_ += bytes;
  while (!waiting_.empty() && waiting_.front().end <= out_bytes_) {
    piece.tokens.push_back(std::move(waiting_.front().token));
    waiting_.pop_front();
  }
}

}  // namespace flywheel::engine
