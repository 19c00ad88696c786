// Parts of a tokenizer.json that every writer of one needs, with the keys in the order of the `tokenizers`
// library.
//
// Values: built by the caller, moved in. No state, no errors.
#pragma once

#include <string>

#include "base/json.h"

namespace flywheel::model {

// An entry of "added_tokens".
OrderedJson added_token_json(size_t id, const std::string& content, bool special);

struct BpeModelJson {
  OrderedJson unknown = nullptr;  // the text of the token for what no other covers
  bool fuse_unknown = false;      // neighbours of it become one
  bool byte_fallback = false;
  bool ignore_merges = false;  // a piece that is a token as it stands is not cut
  OrderedJson vocab;           // {text: id}
  OrderedJson merges;          // [[left, right]], the first merged first
};
// "model" of type BPE.
OrderedJson to_json(BpeModelJson model);

}  // namespace flywheel::model
