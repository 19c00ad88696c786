// Local files: read, atomic write, memory map, append with sync. Object stores are in filesystem.h.
//
// Errors: kNotFound when the file is not there, kIo with the system's words for the rest.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace flywheel {

Result<std::string> read_file(const std::string& path);

// Writes to a temporary name beside `path`, syncs, renames, syncs the folder: after a crash the old or the
// new content is there, whole. Makes missing parent folders.
Result<void> write_file(const std::string& path, std::string_view bytes);

Result<void> make_folders(const std::string& path);
Result<void> remove_all(const std::string& path);
bool path_exists(const std::string& path);
Result<uint64_t> file_size(const std::string& path);
// Names (not paths) in a folder, sorted.
Result<std::vector<std::string>> list_folder(const std::string& path);

// `name` resolved below `root`; kDenied if it would leave it (.., absolute, or through a link).
Result<std::string> path_within(const std::string& root, const std::string& name);

// A whole file, read-only, mapped. The bytes live as long as this object.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);
  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }
  MappedFile& operator=(MappedFile&& other) noexcept;
  std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }
  const uint8_t* data() const { return static_cast<const uint8_t*>(data_); }
  size_t size() const { return size_; }

 private:
  const void* data_ = nullptr;
  size_t size_ = 0;
};

// A large file written in pieces and made visible at once: commit() syncs and renames. Without commit()
// the destructor removes the temporary.
class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::string& path);
  AtomicFile() = default;
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept { *this = std::move(other); }
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  Result<void> write(std::string_view bytes);
  // Overwrites bytes already written (a header whose content is known last).
  Result<void> write_at(uint64_t offset, std::string_view bytes);
  uint64_t size_bytes() const { return size_; }
  // Has the disk begin with what was written so far while the caller goes on: commit() waits for less.
  void start_sync();
  // A second name for the file, by which others read what was written before it is on disk. It stays,
  // whatever becomes of the file, until somebody removes it. kIo where that name is taken, or the file system
  // has no links.
  Result<void> link_as(const std::string& path);
  Result<void> commit();

 private:
  void discard();
  std::string path_, temporary_;
  int fd_ = -1;
  uint64_t size_ = 0, started_ = 0;  // bytes written, and those of them that the disk has begun with
};

// An append-only file. Threads: one.
class AppendFile {
 public:
  // Opens or creates; `truncate_to` cuts a torn tail first.
  static Result<AppendFile> open(const std::string& path, int64_t truncate_to = -1);
  AppendFile() = default;
  ~AppendFile();
  AppendFile(AppendFile&& other) noexcept { *this = std::move(other); }
  AppendFile& operator=(AppendFile&& other) noexcept;
  // On failure (disk full) the file is cut back to its length before the call.
  Result<void> append(std::string_view bytes);
  Result<void> sync();
  uint64_t size_bytes() const { return size_; }

 private:
  int fd_ = -1;
  uint64_t size_ = 0;
  std::string path_;
};

// What brings something to disk, or away from it, one after the other. A test may hear of each before it
// happens, and on which path: what it returns is what the system said then, and it may end the process. A
// write is heard of twice, so that a cut lies within it.
enum class FileAct { kMakeFolders, kCreate, kWrite, kLink, kSync, kRename, kSyncFolder, kRemove };
using FileFault = Result<void> (*)(FileAct act, const std::string& path);
extern FileFault file_fault_for_tests;

// A folder of its own under the system's temporary folder, removed with its content at the end.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace flywheel
