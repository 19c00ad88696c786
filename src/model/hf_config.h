// The configuration of a model in the words of Hugging Face's config.json, from a folder or from a GGUF file,
// so that whoever builds a decoder parses one language.
//
// Beyond Hugging Face's keys: a GGUF may carry a divisor for each rotary frequency (tensor
// rope_freqs.weight); it becomes rope_scaling = {"rope_type": "divisors", "divisors": [...]}.
//
// Errors: kNotFound (no config.json, or a key that must be there), kInvalid or kCorrupt, naming file and key.
// Threads: any.
#pragma once

#include <string>

#include "base/json.h"
#include "base/result.h"
#include "model/gguf.h"

namespace flywheel::model {

// `folder`/config.json, which must be an object.
Result<Json> read_hf_config(const std::string& folder);

Result<Json> hf_config_from_gguf(const GgufFile& file);

}  // namespace flywheel::model
