// The text of one sequence while it grows: tokens become characters, stop strings are found, and nothing is
// given out that could still turn out to be part of one.
//
// Threads: one. Errors: none.
//
//   OutputText output(&tokenizer, {"\n\n"}, StopInOutput::kDrop);
//   OutputText::Piece piece = output.push(token);      // piece.text may be given out
//   if (piece.stopped) ...                              // the text ends here
//   piece = output.finish();                            // no more tokens: what was held back
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"
#include "model/tokenizer.h"

namespace flywheel::engine {

enum class StopInOutput { kDrop, kKeep };

class OutputText {
 public:
  struct Piece {
    std::string text;
    std::vector<GeneratedToken> tokens;  // whose text is out now
    bool stopped = false;
    std::string stop_match;
  };

  // Without a tokenizer there is no text: tokens pass through.
  OutputText(const model::Tokenizer* tokenizer, std::vector<std::string> stop, StopInOutput keep);

  // A token whose text belongs to the output.
  Piece push(GeneratedToken token);
  // A token that ends the sequence and has no text (an end token).
  Piece push_silent(GeneratedToken token);
  Piece finish();

 private:
  Piece advance();
  // How many bytes at the end of `held_` could begin a stop string.
  size_t undecided() const;
  void give_out(Piece& piece, size_t bytes);

  std::optional<model::Detokenizer> detokenizer_;
  std::vector<std::string> stop_;
  StopInOutput keep_;
  std::string held_;        // certain characters that are not out yet
  uint64_t out_bytes_ = 0;  // of text that is out
  struct Waiting {
    GeneratedToken token;
    uint64_t end;  // its text is out when out_bytes_ reaches this
  };
  std::deque<Waiting> waiting_;
};

}  // namespace flywheel::engine
