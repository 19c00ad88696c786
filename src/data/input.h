// Which files a run reads: folders, patterns, single files and the same in object stores (s3://bucket/raw,
// s3://bucket/raw/*.jsonl) into a sorted list, and a file's bytes, decompressed.
//
// A file's kind is known by its name (.html .htm .xhtml, .txt .text .md .rst, .jsonl .ndjson, .parquet), with
// .gz or .zst behind it where it is compressed. Files of other kinds are skipped and counted by ending. Links
// below a folder are followed only where they stay below it.
//
// Errors: UserError for an input that is not there or holds nothing to read. Threads: load_input() any.
//
//   InputList inputs = list_inputs({"docs/", "pages/*.html", "s3://corpus/2026"}, config);
//   RETURN_IF_ERROR(fetch_inputs(inputs, "out/fetched", pool));   // fetch.h: remote files, once, to this
//   machine ASSIGN_OR_RETURN(LoadedFile file, load_input(inputs.files[0], config)); file.bytes()
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/filesystem.h"
#include "base/result.h"

namespace flywheel::data {

struct InputConfig {
  std::vector<std::string> formats = {"html", "text", "jsonl", "parquet"};
  std::vector<std::string>
      include;  // shell patterns; a file below a folder is read when one matches. Empty: all
  // A file or folder is left out when its path or its name matches one: copies of the sources that
  // documentation generators leave, files for the browser, hidden files.
  std::vector<std::string> exclude = {"_sources", "_static", "_downloads", "genindex*", "search.html", ".*"};
  std::string text_key = "text";  // in JSONL and Parquet
  // Decompressed; a larger file is quarantined. Without it 4 GiB; prepare() lowers that for what is held in
  // memory as a whole (bound_by_memory).
  std::optional<int64_t> max_file_bytes;
  int64_t max_line_bytes = int64_t{64} << 20;
  template <typename V>
  void fields(V& v) {
    v("formats", formats), v("include", include), v("exclude", exclude), v("text_key", text_key);
    v("max_file_bytes", max_file_bytes), v("max_line_bytes", max_line_bytes);
  }
  int64_t max_held_bytes = int64_t{4} << 30;  // no key: of the machine, not of the dataset
};

enum class InputKind : uint8_t { kHtml, kText, kJsonl, kParquet };
const char* input_kind_name(InputKind kind);
// UserError for a value that cannot be.
void check(const InputConfig& config);
// A file that each of `threads` can hold at once in `free_bytes`, with the copies that reading makes of it.
// What is larger is quarantined, and the reason says so: it is the only thing in which a dataset depends on
// the machine. Where input.max_file_bytes is set, that alone counts.
void bound_by_memory(InputConfig& config, int threads, double free_bytes);

struct InputFile {
  std::string path;  // as documents name it; of a remote file its address without user and password
  InputKind kind = InputKind::kText;
  uint64_t size_bytes = 0;                   // as it lies there
  std::shared_ptr<const FileSystem> remote;  // null: a local path
  std::string remote_path;
  std::string local;  // where a remote file was fetched to
};

// What lies below a folder and should be read, but cannot be or must not be: a link that leaves the folder, a
// folder that may not be listed, a pipe.
struct NotRead {
  std::string path, reason;
};

struct InputList {
  std::vector<InputFile> files;            // by path
  std::map<std::string, int64_t> skipped;  // "excluded", ".pdf", ... -> files
  std::vector<NotRead> not_read;           // by path; they are quarantined
};

// `output`: the folder that is made of them. It is no input: below one it is left out, and as one refused.
InputList list_inputs(const std::vector<std::string>& inputs, const InputConfig& config,
                      const std::string& output = "");

class LoadedFile {
 public:
  explicit LoadedFile(MappedFile map) : map_(std::move(map)), mapped_(true) {}
  explicit LoadedFile(std::string bytes) : bytes_(std::move(bytes)) {}
  std::string_view bytes() const { return mapped_ ? map_.bytes() : std::string_view(bytes_); }

 private:
  MappedFile map_;
  std::string bytes_;
  bool mapped_ = false;
};

bool is_compressed(const InputFile& file);
// kInvalid for a broken file, kFull for a too large one. A remote file must have been fetched.
Result<LoadedFile> load_input(const InputFile& file, const InputConfig& config);

// gzip (several members too, and zero bytes behind them) or zstd into memory. kFull beyond `max_bytes`.
Result<std::string> decompress_gzip(std::string_view bytes, int64_t max_bytes);
Result<std::string> decompress_zstd(std::string_view bytes, int64_t max_bytes);

}  // namespace flywheel::data
