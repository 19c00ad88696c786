#include <filesystem>

#include "data/record_internal.h"
#include "data/stage_internal.h"

namespace flywheel::data {
namespace {

std::string absolute(const std::string& input) {
  if (!uri_scheme(input).empty()) return public_uri(input);
  return "file://" + std::filesystem::absolute(input).lexically_normal().string();
}

// Whether a file was found through this input.
bool below(const std::string& file, std::string input) {
  if (!uri_scheme(input).empty()) {
    input = public_uri(input).substr(0, public_uri(input).find_first_of("*[?"));
    return file.starts_with(input);
  }
  const std::string folder =
      std::filesystem::path(input.substr(0, input.find_first_of("*?["))).lexically_normal().string();
  return file.starts_with(folder);
}

}  // namespace

std::string digest_of(const std::vector<HashedInput>& inputs) {
  std::vector<std::string> parts;
  for (const HashedInput& input : inputs) {
    parts.push_back(input.file);
    parts.push_back(input.sha256);
  }
  return stage_key(parts);
}

std::string source_name(const std::string& input) {
  namespace fs = std::filesystem;
  const std::string scheme = uri_scheme(input);
  std::string text = scheme.empty() ? fs::absolute(input).lexically_normal().string() : public_uri(input);
  if (!scheme.empty()) text.resize(std::min(text.find_first_of("*[?"), text.size()));
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  const fs::path path(text);
  std::string name = path.filename().string();
  // "html" alone says little: the folder above says what of.
  for (const char* plain : {"html", "doc", "docs", "data", "raw", "text", "pages", "www"}) {
    if (name == plain && path.has_parent_path()) name = path.parent_path().filename().string() + "-" + name;
  }
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_' && c != '.') c = '-';
  }
  while (!name.empty() && !std::isalnum(static_cast<unsigned char>(name.front()))) name.erase(0, 1);
  return name.empty() ? "source" : name;
}

Result<void> record_artifacts(const PrepareRequest& request, const std::vector<HashedInput>& inputs,
                              const std::string& key, store::Run& run, PrepareReport& report) {
  store::Store& store = *request.store;
  std::vector<std::string> sources;
  for (const std::string& input : request.inputs) {
    std::vector<HashedInput> part;
    uint64_t bytes = 0;
    for (const HashedInput& hashed : inputs) {
      if (request.inputs.size() > 1 && !below(hashed.file, input)) continue;
      part.push_back(hashed);
      bytes += hashed.size_bytes;
    }
    ASSIGN_OR_RETURN(const store::Artifact source,
                     store.put_source(source_name(input), absolute(input), digest_of(part), bytes,
                                      {{"files", static_cast<int64_t>(part.size())}}));
    RETURN_IF_ERROR(run.add_input(source.ref()));
    sources.push_back(source.ref());
  }
  const std::string name = request.config.name;
  const auto local = [&](const std::string& file) { return request.output + "/" + file; };
  ASSIGN_OR_RETURN(const store::Artifact tokenizer,
                   store.put_artifact({.kind = "tokenizer",
                                       .name = name + "-tokenizer",
                                       .files = {{"tokenizer.json", local("tokenizer/tokenizer.json")}},
                                       .inputs = sources,
                                       .run = run.id(),
                                       .once = "tokenizer/" + key}));
  std::map<std::string, std::string> files;
  for (const char* file : {"documents.jsonl", "dropped.jsonl", "quarantined.jsonl", "inputs.jsonl",
                           "config.yaml", "clusters.jsonl"}) {
    files[file] = local(file);
  }
  for (const std::string split : {"shards/train", "shards/validation"}) {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, list_folder(local(split)));
    for (const std::string& file : names) files[split + "/" + file] = local(split + "/" + file);
  }
  std::vector<std::string> dataset_inputs = sources;
  dataset_inputs.push_back(tokenizer.ref());
  Json metadata = Json::object();
  for (const StageReport& stage : report.stages) {
    if (stage.name != "shards") continue;
    for (const auto& [what, n] : stage.counts) metadata[what] = n;
  }
  // With the tokenizer that its lineage names: when that one was removed and is here again under another
  // version, the earlier dataset leads to nothing.
  const std::string once = fmt::format("dataset/{}/{}", key, tokenizer.ref());
  ASSIGN_OR_RETURN(const store::Artifact dataset, store.put_artifact({.kind = "dataset",
                                                                      .name = name,
                                                                      .files = files,
                                                                      .inputs = dataset_inputs,
                                                                      .run = run.id(),
                                                                      .metadata = metadata,
                                                                      .once = once}));
  report.artifacts["tokenizer"] = tokenizer.ref();
  report.artifacts["dataset"] = dataset.ref();
  return {};
}

}  // namespace flywheel::data
