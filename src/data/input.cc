#include "data/input.h"

#include <fnmatch.h>
#include <glob.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>

#include "model/unicode.h"

namespace flywheel::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxFileBytes = int64_t{4} << 30;

constexpr std::pair<const char*, InputKind> kEndings[] = {
    {".html", InputKind::kHtml},  {".htm", InputKind::kHtml},       {".xhtml", InputKind::kHtml},
    {".txt", InputKind::kText},   {".text", InputKind::kText},      {".md", InputKind::kText},
    {".rst", InputKind::kText},   {".jsonl", InputKind::kJsonl},    {".ndjson", InputKind::kJsonl},
    {".json", InputKind::kJsonl}, {".parquet", InputKind::kParquet}};

std::string without_compression(std::string name) {
  for (const char* ending : {".gz", ".zst"}) {
    if (name.ends_with(ending)) name.erase(name.size() - std::string_view(ending).size());
  }
  return name;
}

std::optional<InputKind> kind_of(const std::string& path) {
  std::string name = without_compression(path);
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const auto& [ending, kind] : kEndings) {
    // One JSON value over many lines is not JSON lines; .json is that only when it is compressed (as crawls
    // are).
    if (std::string_view(ending) == ".json" && name == path) continue;
    if (name.ends_with(ending)) return kind;
  }
  return std::nullopt;
}

bool matches(const std::vector<std::string>& patterns, const std::string& relative) {
  const fs::path path(relative);
  return std::any_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) {
    if (fnmatch(pattern.c_str(), relative.c_str(), 0) == 0) return true;
    return std::any_of(path.begin(), path.end(),
                       [&](const fs::path& part) { return fnmatch(pattern.c_str(), part.c_str(), 0) == 0; });
  });
}

class Lister {
 public:
  Lister(const InputConfig& config, const std::string& output) : config_(config) {
    check(config);
    std::error_code error;  // a folder that cannot be looked up cannot be read as an input either
    if (!output.empty()) output_ = fs::weakly_canonical(output, error).string();
    if (output_.ends_with('/')) output_.pop_back();
  }

  void add(std::string input) {
    const std::string scheme = uri_scheme(input);
    if (scheme == "file") input = input.substr(std::string_view("file://").size());
    if (!scheme.empty() && scheme != "file") return add_remote(input);
    std::error_code error;
    if (fs::exists(input, error)) {
      refuse_output(input);
      return add_path(input);
    }
    glob_t found{};
    const int rc = glob(input.c_str(), 0, nullptr, &found);
    std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + (rc == 0 ? found.gl_pathc : 0));
    globfree(&found);
    if (paths.empty()) throw UserError(input, "no such file or folder", "give a folder, a file or a pattern");
    for (const std::string& path : paths) {
      if (is_output(path)) continue;  // among what a pattern finds
      refuse_output(path);
      add_path(path);
    }
  }

  InputList finish() {
    std::sort(list_.files.begin(), list_.files.end(),
              [](const InputFile& a, const InputFile& b) { return a.path < b.path; });
    std::sort(list_.not_read.begin(), list_.not_read.end(),
              [](const NotRead& a, const NotRead& b) { return a.path < b.path; });
    return std::move(list_);
  }

 private:
  bool is_output(const std::string& path) const {
    std::error_code error;
    return !output_.empty() && fs::canonical(path, error).string() == output_;
  }

  // What is directly in it or in a part of a dataset is written over, or would be read again as an input of
  // the next time. A folder of raw files beside these may be in it.
  void refuse_output(const std::string& path) const {
    if (is_output(path)) throw UserError(path, "is the output folder itself", "give another --output");
    std::error_code error;
    const fs::path real = fs::canonical(path, error);
    if (output_.empty() || !real.string().starts_with(output_ + "/")) return;
    const std::string first = *real.lexically_relative(output_).begin();
    if (fs::is_regular_file(output_ + "/" + first, error) || first == "stages" || first == "shards" ||
        first == "tokenizer")
      throw UserError(path, "lies in the output folder", "give another --output");
  }

  void add_path(const std::string& path) {
    std::error_code error;
    const fs::file_type type = fs::status(path, error).type();
    if (type == fs::file_type::directory) return add_folder(path);
    if (type == fs::file_type::regular) return add_named(path);
    throw UserError(path, error ? error.message() : "is neither a file nor a folder");
  }

  void add_folder(const std::string& folder) {
    std::error_code error;
    root_ = folder, real_root_ = fs::canonical(folder, error).string();
    if (real_root_ == "/") real_root_.clear();  // everything is below it
    own_.clear();
    if (output_.starts_with(real_root_ + "/")) {
      own_ = output_.substr(real_root_.size() + 1);
      ++list_.skipped["the output folder"];  // counted before it is there, so that each run says the same
    }
    if (!error) walk(folder, error);
    if (error) throw UserError(folder, "cannot be listed: " + error.message());
  }

  // Nothing below a folder is passed over in silence: an entry is walked, read, counted or named as not read.
  void walk(const fs::path& folder, std::error_code& error) {
    for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
      const std::string path = it->path().lexically_normal().string();
      const std::string relative = it->path().lexically_relative(root_).string();
      const bool left_out = matches(config_.exclude, relative);
      std::error_code problem;
      const fs::file_type type = it->symlink_status(problem).type();
      if (problem) {  // what it is nobody knows: a folder, a file; its path may be too long for the system
        if (!left_out) not_read(path, "cannot be looked at: " + problem.message());
        continue;
      }
      switch (type) {
        case fs::file_type::directory:
          if (!left_out && (own_.empty() || relative != own_)) walk(it->path(), problem);
          if (problem) not_read(path, "cannot be listed: " + problem.message());
          break;
        case fs::file_type::regular:
          consider({.path = path, .size_bytes = it->file_size(problem)}, relative, left_out);
          break;
        case fs::file_type::symlink:
          add_link(path, relative, left_out);
          break;
        default:
          if (wanted_kind(path, relative, left_out)) not_read(path, "a pipe, socket or device");
      }
    }
  }

  // A link is followed where it stays below the input: who may write there must not have other files of this
  // machine read into a dataset. What a link to a folder holds is read where it lies, once.
  void add_link(const std::string& path, const std::string& relative, bool left_out) {
    std::error_code broken, error;
    const fs::path target = fs::canonical(path, broken);
    const fs::file_type type = broken ? fs::file_type::none : fs::status(target, error).type();
    const bool inside = target == real_root_ || target.string().starts_with(real_root_ + "/");
    if (type == fs::file_type::directory) {
      if (left_out) return;
      if (!inside) return not_read(path, "a link that leaves the input: it leads to " + target.string());
      ++list_.skipped["link to a folder of the input"];
      return;
    }
    // One without an ending may have been a folder.
    if (broken && !left_out && fs::path(path).extension().empty())
      return not_read(path, "a link that leads nowhere: " + broken.message());
    const auto kind = wanted_kind(path, relative, left_out);
    if (!kind) return;
    if (broken) return not_read(path, "a link that leads nowhere: " + broken.message());
    if (!inside) return not_read(path, "a link that leaves the input: it leads to " + target.string());
    if (type != fs::file_type::regular) return not_read(path, "a link to a pipe, socket or device");
    put({.path = path, .kind = *kind, .size_bytes = fs::file_size(target, error)});
  }

  void not_read(const std::string& path, const std::string& reason) {
    if (seen_.insert(path).second) list_.not_read.push_back({path, reason});
  }

  void add_remote(const std::string& uri) {
    // s3://bucket/raw/*.jsonl?region=x: the folder in front of the pattern, and the query.
    const size_t query = std::min(uri.find('?'), uri.size());
    std::string folder = uri.substr(0, query), pattern;
    if (const size_t star = folder.find_first_of("*["); star != std::string::npos) {
      const size_t slash = folder.rfind('/', star);
      pattern = folder.substr(slash + 1);
      folder.resize(slash);
    }
    auto remote =
        std::make_shared<const FileSystem>(FileSystem::open(folder + uri.substr(query)).value_or_throw());
    std::string base = public_uri(folder);
    while (base.ends_with('/')) base.pop_back();
    int64_t matched = 0;
    for (const FileEntry& entry : remote->list().value_or_throw()) {
      InputFile file{.path = base + (entry.path.empty() ? "" : "/") + entry.path,
                     .size_bytes = entry.size_bytes,
                     .remote = remote,
                     .remote_path = entry.path};
      if (entry.path.empty()) {
        put_named(std::move(file));
      } else if (pattern.empty()) {
        consider(std::move(file), entry.path, matches(config_.exclude, entry.path));
      } else if (fnmatch(pattern.c_str(), entry.path.c_str(), FNM_PATHNAME) == 0) {
        consider(std::move(file), entry.path, false);
        ++matched;
      }
    }
    if (!pattern.empty() && matched == 0) {
      throw UserError(public_uri(uri), "no object matches", "give a folder, an object or a pattern");
    }
  }

  // A file that the user names is read whatever the patterns say.
  void add_named(const std::string& path) {
    put_named({.path = fs::path(path).lexically_normal().string(), .size_bytes = fs::file_size(path)});
  }

  void put_named(InputFile file) {
    const auto kind = kind_of(file.path);
    if (!kind) {
      throw UserError(file.path, "this kind of file is not read",
                      "html, txt, md, rst, jsonl and parquet are, also .gz and .zst");
    }
    file.kind = *kind;
    put(std::move(file));
  }

  void consider(InputFile file, const std::string& relative, bool left_out) {
    const auto kind = wanted_kind(file.path, relative, left_out);
    if (!kind) return;
    file.kind = *kind;
    put(std::move(file));
  }

  // The kind of a file that is to be read; others are counted.
  std::optional<InputKind> wanted_kind(const std::string& path, const std::string& relative, bool left_out) {
    if (left_out || (!config_.include.empty() && !matches(config_.include, relative))) {
      ++list_.skipped["excluded"];
      return std::nullopt;
    }
    const auto kind = kind_of(path);
    if (kind && std::find(config_.formats.begin(), config_.formats.end(), input_kind_name(*kind)) !=
                    config_.formats.end()) {
      return kind;
    }
    const std::string ending = model::repair_utf8(fs::path(path).extension().string());
    ++list_.skipped[ending.empty() ? "no ending" : ending];
    return std::nullopt;
  }

  // The same file through two inputs is one.
  void put(InputFile file) {
    if (seen_.insert(file.path).second) list_.files.push_back(std::move(file));
  }

  const InputConfig& config_;
  InputList list_;
  std::set<std::string> seen_;
  fs::path root_;          // the folder being walked, as it was given
  std::string real_root_;  // without links
  std::string output_;     // without links; "" for none
  std::string own_;        // the output's path below the root, where it lies there
};

}  // namespace

const char* input_kind_name(InputKind kind) {
  static constexpr const char* kNames[] = {"html", "text", "jsonl", "parquet"};
  return kNames[static_cast<size_t>(kind)];
}

void check(const InputConfig& config) {
  for (const std::string& format : config.formats) {
    const char* const known[] = {"html", "text", "jsonl", "parquet"};
    if (std::find(std::begin(known), std::end(known), format) == std::end(known)) {
      throw UserError("input.formats", "\"" + format + "\" is not one of html, text, jsonl, parquet");
    }
  }
  if (config.formats.empty()) throw UserError("input.formats", "at least one of html, text, jsonl, parquet");
  if (config.text_key.empty()) throw UserError("input.text_key", "a key is needed", "the default is text");
  if (config.max_file_bytes.value_or(1) < 1) throw UserError("input.max_file_bytes", "must be at least 1");
  if (config.max_line_bytes < 1) throw UserError("input.max_line_bytes", "must be at least 1");
}

InputList list_inputs(const std::vector<std::string>& inputs, const InputConfig& config,
                      const std::string& output) {
  Lister lister(config, output);
  for (const std::string& input : inputs) lister.add(input);
  InputList list = lister.finish();
  if (list.files.empty()) {
    std::string skipped;
    for (const auto& [why, n] : list.skipped)
      skipped += fmt::format("{}{} {}", skipped.empty() ? "" : ", ", n, why);
    if (!list.not_read.empty()) {
      skipped += fmt::format("{}{} not read, the first: {}: {}", skipped.empty() ? "" : ", ",
                             list.not_read.size(), list.not_read[0].path, list.not_read[0].reason);
    }
    throw UserError("input", "no file to read" + (skipped.empty() ? "" : " (skipped: " + skipped + ")"),
                    "html, txt, md, rst, jsonl and parquet are read; see input.exclude and input.formats");
  }
  return list;
}

bool is_compressed(const InputFile& file) {
  return file.path.ends_with(".gz") || file.path.ends_with(".zst");
}

void bound_by_memory(InputConfig& config, int threads, double free_bytes) {
  constexpr int kCopies = 4;  // compressed bytes unpacked, as UTF-8, as a document, as its line of JSON
  const auto share = static_cast<int64_t>(free_bytes / threads / kCopies);
  config.max_held_bytes = std::clamp<int64_t>(share, 1, kMaxFileBytes);
}

Result<LoadedFile> load_input(const InputFile& file, const InputConfig& config) {
  // Lines and row groups of a file as it lies there are read where it is mapped.
  const bool held = is_compressed(file) || file.kind == InputKind::kHtml || file.kind == InputKind::kText;
  const int64_t max_bytes = config.max_file_bytes.value_or(held ? config.max_held_bytes : kMaxFileBytes);
  const auto too_large = [&](const std::string& what) {
    const bool by_memory = !config.max_file_bytes && max_bytes < kMaxFileBytes;
    return make_error(ErrorCode::kFull, "{}; {}", what,
                      by_memory
                          ? "each thread has free memory here for a file of " + std::to_string(max_bytes) +
                                " bytes; input.max_file_bytes sets another bound"
                          : "input.max_file_bytes is " + std::to_string(max_bytes));
  };
  const auto unpacked = [&](Result<std::string> bytes) -> Result<LoadedFile> {
    if (bytes.ok()) return LoadedFile(std::move(bytes).value());
    return bytes.error().code == ErrorCode::kFull ? too_large(bytes.error().message) : bytes.error();
  };
  CHECK(file.remote == nullptr || !file.local.empty(), "{} was not fetched", file.path);
  ASSIGN_OR_RETURN(MappedFile raw, MappedFile::open(file.remote == nullptr ? file.path : file.local));
  if (file.path.ends_with(".gz")) return unpacked(decompress_gzip(raw.bytes(), max_bytes));
  if (file.path.ends_with(".zst")) return unpacked(decompress_zstd(raw.bytes(), max_bytes));
  if (raw.bytes().size() > static_cast<size_t>(max_bytes))
    return too_large(std::to_string(raw.bytes().size()) + " bytes");
  return LoadedFile(std::move(raw));
}

}  // namespace flywheel::data
