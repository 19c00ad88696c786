#include "store/blobs.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <set>

#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/posix.h"

namespace flywheel::store {
namespace {

constexpr size_t kBlockBytes = 1 << 20;
constexpr size_t kSyncOneByOne = 16;  // more files than this: one syncfs instead of an fsync each

struct Hashed {
  std::string sha256;
  uint64_t size_bytes = 0;
};

// Hashes `fd` from its start; where `copy_to` is a file, writes what it reads there.
Result<Hashed> hash_stream(int fd, const std::string& path, int copy_to, const std::string& copy_path,
                           const BlobFolder::Progress& progress) {
  const auto block = std::make_unique<char[]>(kBlockBytes);
  Sha256 sha;
  Hashed hashed;
  for (int blocks = 1;; ++blocks) {
    const ssize_t n = ::read(fd, block.get(), kBlockBytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error("cannot read", path);
    if (n == 0) break;
    const std::string_view bytes(block.get(), static_cast<size_t>(n));
    sha.update(bytes);
    if (copy_to >= 0) RETURN_IF_ERROR(write_all(copy_to, copy_path, bytes));
    hashed.size_bytes += bytes.size();
    if (progress && blocks % 16 == 0) RETURN_IF_ERROR(progress());
  }
  hashed.sha256 = sha.hex();
  return hashed;
}

Result<void> sync_path(const std::string& path, int flags) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | flags));
  if (!fd.valid() || ::fsync(fd.get()) != 0) return system_error("cannot sync", path);
  return {};
}

}  // namespace

StagedFile::~StagedFile() {
  if (!path_.empty()) ::unlink(path_.c_str());
}
StagedFile::StagedFile(StagedFile&& other) noexcept {
  *this = std::move(other);
}
StagedFile& StagedFile::operator=(StagedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(sha256_, other.sha256_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

void StagedFile::set_content(std::string sha256, uint64_t size_bytes) {
  sha256_ = std::move(sha256);
  size_bytes_ = size_bytes;
}

Result<BlobFolder> BlobFolder::open(const std::string& root) {
  BlobFolder folder;
  folder.root_ = root;
  folder.blobs_ = root + "/blobs";
  folder.incoming_ = root + "/incoming";
  RETURN_IF_ERROR(make_folders(folder.blobs_));
  RETURN_IF_ERROR(make_folders(folder.incoming_));
  return folder;
}

std::string BlobFolder::path_of(const std::string& sha256) const {
  CHECK(is_sha256(sha256), "{} is not a SHA-256", sha256);
  return blobs_ + "/" + sha256.substr(0, 2) + "/" + sha256;
}

Result<StagedFile> BlobFolder::stage(const std::string& source, const std::string& name, Ingest ingest,
                                     const Progress& progress) const {
  const Descriptor in(
      ::open(source.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a pipe must not make us wait
  if (!in.valid()) return system_error("cannot read", source);
  struct stat info {};
  if (::fstat(in.get(), &info) != 0) return system_error("cannot look at", source);
  if (!S_ISREG(info.st_mode)) return make_error(ErrorCode::kInvalid, "{} is not a regular file", source);

  const std::string path = incoming_ + "/" + name;
  if (ingest != Ingest::kCopy &&
      ::linkat(AT_FDCWD, source.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) == 0) {
    StagedFile staged(path);
    // Nobody may write through the other name: content must stay what its name says.
    if (::chmod(path.c_str(), 0444) != 0) return system_error("cannot protect", source);
    ASSIGN_OR_RETURN(const Hashed hashed, hash_stream(in.get(), source, -1, "", progress));
    staged.set_content(hashed.sha256, hashed.size_bytes);
    return staged;
  }
  // Another file system, or links are not possible: a copy is always right.
  const Descriptor out(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444));
  if (!out.valid()) return system_error("cannot create", path);
  StagedFile staged(path);
  const bool shared = ::ioctl(out.get(), FICLONE, in.get()) == 0;  // no bytes move; the copy is then hashed
  const Descriptor cloned(shared ? ::open(path.c_str(), O_RDONLY | O_CLOEXEC) : -1);
  if (shared && !cloned.valid()) return system_error("cannot read", path);
  ASSIGN_OR_RETURN(const Hashed hashed, hash_stream(shared ? cloned.get() : in.get(), source,
                                                    shared ? -1 : out.get(), path, progress));
  staged.set_content(hashed.sha256, hashed.size_bytes);
  return staged;
}

Result<StagedFile> BlobFolder::stage_bytes(std::string_view bytes, const std::string& name) const {
  const std::string path = incoming_ + "/" + name;
  const Descriptor out(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444));
  if (!out.valid()) return system_error("cannot create", path);
  StagedFile staged(path);
  staged.set_content(sha256_hex(bytes), bytes.size());
  RETURN_IF_ERROR(write_all(out.get(), path, bytes));
  return staged;
}

Result<void> BlobFolder::publish(std::vector<StagedFile>& files) const {
  const bool sync_all = files.size() > kSyncOneByOne;
  const Descriptor root(::open(blobs_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root.valid()) return system_error("cannot open", blobs_);
  if (sync_all && ::syncfs(root.get()) != 0) return system_error("cannot sync", blobs_);
  std::set<std::string> shards;
  for (StagedFile& file : files) {
    if (!sync_all) {
      if (auto synced = sync_path(file.path(), 0); !synced.ok()) {
        if (synced.error().code != ErrorCode::kNotFound) return synced;
        return make_error(ErrorCode::kAborted, "{} went away while it was written; try again", file.path());
      }
    }
    const std::string target = path_of(file.sha256());
    const std::string shard = target.substr(0, target.rfind('/'));
    if (::mkdir(shard.c_str(), 0755) != 0 && errno != EEXIST)
      return system_error("cannot make folder", shard);
    struct stat there {};
    if (::stat(target.c_str(), &there) == 0) {
      auto content = hash_file(target);
      if (content.ok() && content.value() == file.sha256()) continue;  // the destructor removes ours
      LOG_WARN("store: blob {} was damaged; replaced by the same content from a new file", file.sha256());
    }
    if (::rename(file.path().c_str(), target.c_str()) != 0) {
      if (errno == ENOENT) {
        return make_error(ErrorCode::kAborted, "{} went away while it was written; try again", file.path());
      }
      return system_error("cannot rename to", target);
    }
    file.keep();
    shards.insert(shard);
  }
  if (sync_all) {
    if (::syncfs(root.get()) != 0) return system_error("cannot sync", blobs_);
    return {};
  }
  for (const std::string& shard : shards) RETURN_IF_ERROR(sync_path(shard, O_DIRECTORY));
  return shards.empty() ? Result<void>() : sync_path(blobs_, O_DIRECTORY);
}

Result<std::string> hash_file(const std::string& path, const BlobFolder::Progress& progress) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return system_error("cannot read", path);
  ASSIGN_OR_RETURN(const Hashed hashed, hash_stream(fd.get(), path, -1, "", progress));
  return hashed.sha256;
}

Result<void> check_content(const std::string& path, const std::string& sha256, uint64_t size_bytes) {
  if (!path_exists(path)) return make_error(ErrorCode::kNotFound, "{} is missing", path);
  ASSIGN_OR_RETURN(const uint64_t size, file_size(path));
  if (size != size_bytes) {
    return make_error(ErrorCode::kCorrupt, "{} has {} bytes, not {}", path, size, size_bytes);
  }
  ASSIGN_OR_RETURN(const std::string found, hash_file(path));
  if (found == sha256) return {};
  return make_error(ErrorCode::kCorrupt, "{} has the SHA-256 {}", path, found);
}

bool is_sha256(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

}  // namespace flywheel::store
