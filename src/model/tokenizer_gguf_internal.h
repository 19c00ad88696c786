// What the loader of GGUF vocabularies and their export to tokenizer.json share.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "model/gguf.h"

namespace flywheel::model {

// tokenizer.ggml.token_type
namespace token_type {
enum : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
}

// How text is cut before byte-level BPE.
struct GgufPretokenizer {
  Json spec;                       // as tokenizer.json's "pre_tokenizer"
  bool whole_piece_first = false;  // tokenizer.json's "ignore_merges"
  bool nfc = false;
};

// What tokenizer.ggml.pre names; without the key "default". kInvalid for a name that is not known.
Result<GgufPretokenizer> gguf_pretokenizer(const GgufFile& file);
// Every name that is known.
std::vector<std::string> gguf_pretokenizer_names();

}  // namespace flywheel::model
