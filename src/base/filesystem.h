// Files anywhere: a path, file://, s3://, gs:// or hdfs://, through Arrow's file systems.
//
// For local work with atomic writes and memory maps use file.h; this is for input and output that the user
// names by URI. Credentials come from where the cloud's own tools look (environment, ~/.aws, ...); an S3
// endpoint of one's own is a query: s3://bucket/key?endpoint_override=127.0.0.1:9000&scheme=http
// Threads: any. Errors: kNotFound, kInvalid (URI), kUnavailable (this build of Arrow lacks the scheme), kIo.
//
//   ASSIGN_OR_RETURN(auto fs, FileSystem::open("s3://corpus/2026?region=eu-west-1"));
//   for (const FileEntry& e : fs.list().value()) use(fs.read(e.path));
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace flywheel {

struct FileEntry {
  std::string path;  // relative to the file system's root
  uint64_t size_bytes = 0;
  int64_t modified_ns = 0;
};

class FileSystem {
 public:
  // `uri`'s path becomes the root; no later path can leave it (kDenied).
  static Result<FileSystem> open(const std::string& uri);
  FileSystem(FileSystem&&) noexcept;
  FileSystem& operator=(FileSystem&&) noexcept;
  ~FileSystem();

  // Files (not folders) at and below `folder`, sorted by path.
  Result<std::vector<FileEntry>> list(const std::string& folder = "") const;
  Result<FileEntry> stat(const std::string& path) const;
  Result<std::string> read(const std::string& path) const;
  Result<std::string> read_range(const std::string& path, uint64_t offset, uint64_t length) const;
  // Whole content under its final name or not at all: object stores do that by themselves, elsewhere a
  // temporary name is renamed.
  Result<void> write(const std::string& path, std::string_view bytes) const;
  Result<void> remove(const std::string& path) const;

 private:
  struct State;
  explicit FileSystem(std::unique_ptr<State> state);
  Result<std::string> full(const std::string& path) const;
  std::unique_ptr<State> state_;
};

// "s3", "gs", "hdfs", "file", or "" for a plain path.
std::string uri_scheme(const std::string& uri);

}  // namespace flywheel
