// What vocabularies with scores (SentencePiece, in its own files and in GGUF) have in common.
#pragma once

#include "base/json.h"
#include "model/bpe.h"

namespace flywheel::model {

// Merges by descending score; only tokens in `mergeable` come out of one. kInvalid for tokens so long that
// looking at every way to write them would never end.
Result<std::vector<BpeMerge>> merges_of_scores(const Vocabulary& vocabulary,
                                               const std::vector<double>& scores,
                                               const std::vector<bool>& mergeable);

// The tokenizer.json form of SentencePiece's decoder; `prefix`: one space before the text is not its own.
Json sentencepiece_decoder(bool prefix);

}  // namespace flywheel::model
