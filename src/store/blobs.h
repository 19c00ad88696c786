// Files by the SHA-256 of their content: <root>/blobs/3f/3fa9.... read-only, never changed, each with one
// name.
//
// A file comes in two steps, so that no half-written content ever has a content's name:
//   ASSIGN_OR_RETURN(StagedFile file, blobs.stage(source, "w1-0", Ingest::kCopy, renew));   // incoming/,
//   hashed
//   ... the store reserves file.sha256, so that no collection takes it ...
//   RETURN_IF_ERROR(blobs.publish(files));                                                  // synced,
//   renamed
// Ownership: a StagedFile removes its temporary unless it was published.
// Threads: no state but the folder's path; any thread.
// Errors: kNotFound the source is not there, kInvalid it is not a regular file, kIo (disk full), kAborted the
// temporary went away (a collection took this writer for dead), kCorrupt content differs from its name.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "store/artifact.h"

namespace flywheel::store {

class StagedFile {
 public:
  explicit StagedFile(std::string path) : path_(std::move(path)) {}
  ~StagedFile();
  StagedFile(StagedFile&& other) noexcept;
  StagedFile& operator=(StagedFile&& other) noexcept;
  const std::string& path() const { return path_; }
  const std::string& sha256() const { return sha256_; }
  uint64_t size_bytes() const { return size_bytes_; }
  void set_content(std::string sha256, uint64_t size_bytes);
  void keep() { path_.clear(); }  // it has its own name now

 private:
  std::string path_, sha256_;
  uint64_t size_bytes_ = 0;
};

class BlobFolder {
 public:
  static Result<BlobFolder> open(const std::string& root);  // makes the folders
  BlobFolder() = default;

  std::string path_of(const std::string& sha256) const;
  const std::string& incoming() const { return incoming_; }
  const std::string& blobs() const { return blobs_; }

  // Called every few megabytes while a file is read; an error stops it.
  using Progress = std::function<Result<void>()>;
  Result<StagedFile> stage(const std::string& source, const std::string& name, Ingest ingest,
                           const Progress& progress) const;
  Result<StagedFile> stage_bytes(std::string_view bytes, const std::string& name) const;
  // Gives the files their names. Content that is there already is read and compared; where that is damaged,
  // the new file takes its place. Everything is on the disk when this returns.
  Result<void> publish(std::vector<StagedFile>& files) const;

 private:
  std::string root_, blobs_, incoming_;
};

// SHA-256 of a file, read a block at a time.
Result<std::string> hash_file(const std::string& path, const BlobFolder::Progress& progress = {});

// Whether a blob's file holds its content: else kCorrupt, kNotFound, kIo with what is wrong with it.
Result<void> check_content(const std::string& path, const std::string& sha256, uint64_t size_bytes);

// True for 64 lower-case hex digits.
bool is_sha256(std::string_view text);

}  // namespace flywheel::store
