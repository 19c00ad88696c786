// Files anywhere: a path, file://, s3://, gs:// or hdfs://, through Arrow's file systems.
//
// For local work with atomic writes and memory maps use file.h; this is for input and output that the user
// names by URI. What it is told by whom:
//   s3://    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE or ~/.aws; the region
//   from
//            AWS_REGION or AWS_DEFAULT_REGION; a server of one's own from AWS_ENDPOINT_URL_S3 or
//            AWS_ENDPOINT_URL, or in the URI: s3://bucket/key?endpoint_override=127.0.0.1:9000&scheme=http
//   gs://    GOOGLE_APPLICATION_CREDENTIALS or gcloud's login; gs://anonymous@bucket for public data;
//            an emulator from STORAGE_EMULATOR_HOST
//   hdfs://  HADOOP_HOME, JAVA_HOME and CLASSPATH: Arrow loads libhdfs.so and libjvm.so when it is used
// Every request gives up after a time (FileSystemOptions). Secrets stay out of error messages.
//
// Threads: any. Errors: kNotFound, kDenied (credentials, or a path that leaves the root), kInvalid (URI),
// kUnavailable (no answer from the server; this build of Arrow or this machine lacks the scheme; s3:// in a
// program without ObjectStoreSession), kIo.
//
//   int main() { const ObjectStoreSession session; ... }   // for s3:// alone
//   ASSIGN_OR_RETURN(auto fs, FileSystem::open("s3://corpus/2026?region=eu-west-1"));
//   for (const FileEntry& e : fs.list().value()) use(fs.read(e.path));
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace flywheel {

struct FileEntry {
  std::string path;  // relative to the file system's root; "" for the root itself, when that is a file
  uint64_t size_bytes = 0;
  int64_t modified_ns = 0;
};

struct FileSystemOptions {
  // For one request to a server, tries and the waits between them included. gs:// bounds its retries by it;
  // a try that hangs ends there by the library's own limits (two minutes without a byte).
  int64_t timeout_ms = 30'000;
};

class FileSystem {
 public:
  // `uri`'s path becomes the root; no later path can leave it (kDenied).
  static Result<FileSystem> open(const std::string& uri, const FileSystemOptions& options = {});
  FileSystem(FileSystem&&) noexcept;
  FileSystem& operator=(FileSystem&&) noexcept;
  ~FileSystem();

  // Files (not folders) at and below `folder`, sorted by path.
  Result<std::vector<FileEntry>> list(const std::string& folder = "") const;
  Result<FileEntry> stat(const std::string& path) const;
  Result<std::string> read(const std::string& path) const;
  // Less than `length` where the file ends before; kInvalid when it ends before `offset`.
  Result<std::string> read_range(const std::string& path, uint64_t offset, uint64_t length) const;
  // The whole file in order, in pieces of some megabytes; an error of `use` ends it and is returned.
  Result<void> read_pieces(const std::string& path,
                           const std::function<Result<void>(std::string_view)>& use) const;
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

// What main() of a program holds that opens s3:// addresses. The S3 library starts with the first of them and
// has to end before static objects are destroyed, that is here: requests in flight are awaited (they are
// bounded), later ones fail; FileSystems that are still there may be destroyed.
class ObjectStoreSession {
 public:
  ObjectStoreSession();
  ~ObjectStoreSession();
  ObjectStoreSession(const ObjectStoreSession&) = delete;
  ObjectStoreSession& operator=(const ObjectStoreSession&) = delete;
};

// "s3", "gs", "hdfs", "file", or "" for a plain path.
std::string uri_scheme(const std::string& uri);

// The URI as it may be shown and stored: without a user and password before the host, and without the values
// of keys in its query (access_key=(secret)).
std::string public_uri(const std::string& uri);

}  // namespace flywheel
