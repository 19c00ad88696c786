#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/posix.h"

namespace flywheel {
namespace fs = std::filesystem;

FileFault file_fault_for_tests = nullptr;

namespace {

Result<void> before(FileAct act, const std::string& path) {
  return file_fault_for_tests == nullptr ? Result<void>() : file_fault_for_tests(act, path);
}

Result<void> sync_folder_of(const std::string& path) {
  RETURN_IF_ERROR(before(FileAct::kSyncFolder, path));
  const std::string folder = fs::path(path).parent_path().string();
  const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return system_error("cannot open folder of", path);
  const int failed = ::fsync(fd);
  ::close(fd);
  if (failed != 0 && errno != EINVAL) return system_error("cannot sync folder of", path);
  return {};
}

}  // namespace

Result<std::string> read_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return system_error("cannot read", path);
  std::string bytes;
  struct stat info {};
  if (::fstat(fd, &info) == 0 && S_ISDIR(info.st_mode)) {
    ::close(fd);
    return make_error(ErrorCode::kIo, "cannot read {}: it is a folder", path);
  }
  size_t used = 0;
  bytes.resize(static_cast<size_t>(std::max<off_t>(info.st_size, 0)) + 1);  // /proc files say 0
  for (;;) {
    if (used == bytes.size()) bytes.resize(bytes.size() * 2);
    const ssize_t n = ::read(fd, bytes.data() + used, bytes.size() - used);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const Error error = system_error("cannot read", path);
      ::close(fd);
      return error;
    }
    if (n == 0) break;
    used += static_cast<size_t>(n);
  }
  ::close(fd);
  bytes.resize(used);
  return bytes;
}

Result<void> make_folders(const std::string& path) {
  if (path.empty()) return {};
  RETURN_IF_ERROR(before(FileAct::kMakeFolders, path));
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return make_error(ErrorCode::kIo, "cannot make folder {}: {}", path, error.message());
  return {};
}

Result<void> remove_all(const std::string& path) {
  RETURN_IF_ERROR(before(FileAct::kRemove, path));
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return make_error(ErrorCode::kIo, "cannot remove {}: {}", path, error.message());
  return {};
}

bool path_exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

Result<uint64_t> file_size(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return system_error("cannot look at", path);
  return static_cast<uint64_t>(info.st_size);
}

Result<std::vector<std::string>> list_folder(const std::string& path) {
  std::error_code error;
  std::vector<std::string> names;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) return system_error("cannot list", path, error.value());
  std::sort(names.begin(), names.end());
  return names;
}

Result<std::string> path_within(const std::string& root, const std::string& name) {
  std::error_code error;
  const fs::path base = fs::weakly_canonical(root, error);
  if (error) return make_error(ErrorCode::kIo, "cannot resolve {}: {}", root, error.message());
  const fs::path full = fs::weakly_canonical(base / name, error);
  if (error) return make_error(ErrorCode::kIo, "cannot resolve {} in {}: {}", name, root, error.message());
  const auto [end, _] = std::mismatch(base.begin(), base.end(), full.begin(), full.end());
  if (end != base.end() || name.find('\0') != std::string::npos) {
    return make_error(ErrorCode::kDenied, "{} leaves the folder {}", name, root);
  }
  return full.string();
}

Result<MappedFile> MappedFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return system_error("cannot open", path);
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return make_error(ErrorCode::kIo, "cannot map {}: not a regular file", path);
  }
  MappedFile file;
  file.size_ = static_cast<size_t>(info.st_size);
  if (file.size_ > 0) {
    void* data = ::mmap(nullptr, file.size_, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
      const Error error = system_error("cannot map", path);
      file.size_ = 0;
      ::close(fd);
      return error;
    }
    file.data_ = data;
  }
  ::close(fd);
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<void*>(data_), size_);
}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Result<AtomicFile> AtomicFile::create(const std::string& path) {
  static std::atomic<uint64_t> counter{0};
  RETURN_IF_ERROR(make_folders(fs::path(path).parent_path().string()));
  struct stat there {};
  if (::stat(path.c_str(), &there) == 0 && !S_ISREG(there.st_mode) && !S_ISDIR(there.st_mode)) {
    return make_error(ErrorCode::kInvalid, "{} is a device, a pipe or a socket: only files are written whole",
                      path);
  }
  RETURN_IF_ERROR(before(FileAct::kCreate, path));
  AtomicFile file;
  file.path_ = path;
  file.temporary_ = fmt::format("{}.tmp.{}.{}", path, ::getpid(), counter.fetch_add(1));
  file.fd_ = ::open(file.temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file.fd_ < 0) return system_error("cannot create", file.temporary_);
  return file;
}

void AtomicFile::discard() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
  fd_ = -1;
}

AtomicFile::~AtomicFile() {
  discard();
}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(temporary_, other.temporary_);
  std::swap(fd_, other.fd_);
  std::swap(size_, other.size_);
  std::swap(started_, other.started_);
  return *this;
}

Result<void> AtomicFile::write(std::string_view bytes) {
  CHECK(fd_ >= 0, "write to {} after commit", path_);
  const size_t middle = file_fault_for_tests == nullptr ? 0 : bytes.size() / 2;
  for (const std::string_view part : {bytes.substr(0, middle), bytes.substr(middle)}) {
    if (part.empty()) continue;
    RETURN_IF_ERROR(before(FileAct::kWrite, path_));
    RETURN_IF_ERROR(write_all(fd_, temporary_, part));
    size_ += part.size();
  }
  return {};
}

Result<void> AtomicFile::write_at(uint64_t offset, std::string_view bytes) {
  CHECK(fd_ >= 0 && offset + bytes.size() <= size_, "write_at past the end of {}", path_);
  RETURN_IF_ERROR(before(FileAct::kWrite, path_));
  if (::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset)) !=
      static_cast<ssize_t>(bytes.size())) {
    return system_error("cannot write", temporary_);
  }
  return {};
}

// No more than a hint: what goes wrong on the way, and where there is no such call, commit() meets.
void AtomicFile::start_sync() {
  CHECK(fd_ >= 0, "start_sync of {} after commit", path_);
  (void)::sync_file_range(fd_, static_cast<off64_t>(started_), static_cast<off64_t>(size_ - started_),
                          SYNC_FILE_RANGE_WRITE);
  started_ = size_;
}

Result<void> AtomicFile::link_as(const std::string& path) {
  CHECK(fd_ >= 0, "link_as of {} after commit", path_);
  RETURN_IF_ERROR(before(FileAct::kLink, path));
  if (::link(temporary_.c_str(), path.c_str()) != 0) return system_error("cannot link", path);
  return {};
}

Result<void> AtomicFile::commit() {
  CHECK(fd_ >= 0, "commit of {} twice", path_);
  Result<void> done = before(FileAct::kSync, path_);
  if (done.ok() && ::fsync(fd_) != 0) done = system_error("cannot commit", path_);
  if (done.ok()) done = before(FileAct::kRename, path_);
  if (done.ok() && ::rename(temporary_.c_str(), path_.c_str()) != 0)
    done = system_error("cannot commit", path_);
  if (!done.ok()) {
    discard();
    return done;
  }
  ::close(fd_);
  fd_ = -1;
  return sync_folder_of(path_);
}

Result<void> write_file(const std::string& path, std::string_view bytes) {
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  RETURN_IF_ERROR(file.write(bytes));
  return file.commit();
}

Result<AppendFile> AppendFile::open(const std::string& path, int64_t truncate_to) {
  RETURN_IF_ERROR(make_folders(fs::path(path).parent_path().string()));
  AppendFile file;
  file.path_ = path;
  file.fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file.fd_ < 0) return system_error("cannot open", path);
  if (truncate_to >= 0 && ::ftruncate(file.fd_, truncate_to) != 0) return system_error("cannot cut", path);
  struct stat info {};
  if (::fstat(file.fd_, &info) != 0) return system_error("cannot look at", path);
  file.size_ = static_cast<uint64_t>(info.st_size);
  return file;
}

AppendFile::~AppendFile() {
  if (fd_ >= 0) ::close(fd_);
}

AppendFile& AppendFile::operator=(AppendFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

Result<void> AppendFile::append(std::string_view bytes) {
  if (auto written = write_all(fd_, path_, bytes); !written.ok()) {
    if (::ftruncate(fd_, static_cast<off_t>(size_)) != 0) return system_error("cannot cut back", path_);
    return written.error();
  }
  size_ += bytes.size();
  return {};
}

Result<void> AppendFile::sync() {
  if (::fdatasync(fd_) != 0) return system_error("cannot sync", path_);
  return {};
}

TempFolder::TempFolder() {
  std::string pattern = (fs::temp_directory_path() / "flywheel.XXXXXX").string();
  CHECK(::mkdtemp(pattern.data()) != nullptr, "cannot make {}: {}", pattern, std::strerror(errno));
  path_ = pattern;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace flywheel
