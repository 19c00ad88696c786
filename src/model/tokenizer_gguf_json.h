// The vocabulary of a GGUF file as tokenizer.json and tokenizer_config.json, which the `tokenizers` and
// `transformers` libraries load: the same ids as Tokenizer::from_gguf gives.
//
// Threads: any. Errors: kInvalid for kinds of vocabulary that no decoder has (bert, t5) and for what
// tokenizer.json cannot say (two ids with one text); kCorrupt as from_gguf.
//
//   ASSIGN_OR_RETURN(GgufFile file, GgufFile::open("model.gguf"));
//   ASSIGN_OR_RETURN(const std::string json, tokenizer_json_of(file));
#pragma once

#include <string>

#include "model/gguf.h"

namespace flywheel::model {

Result<std::string> tokenizer_json_of(const GgufFile& file);
// Special tokens by name, the longest text and the chat template.
Result<std::string> tokenizer_config_of(const GgufFile& file);

}  // namespace flywheel::model
