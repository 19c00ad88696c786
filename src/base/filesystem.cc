#include "base/filesystem.h"

#include <arrow/buffer.h>
#include <arrow/io/interfaces.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>

#include "base/filesystem_internal.h"

namespace flywheel {
namespace {

constexpr int64_t kPieceBytes = int64_t{8} << 20;

}  // namespace

struct FileSystem::State {
  RemoteFileSystem remote;
  std::string uri;     // as it may be shown
  std::string scheme;  // "" for a local path

  arrow::fs::FileSystem& fs() const { return *remote.fs; }
  // As messages name a file: with its scheme.
  std::string shown(const std::string& name) const { return scheme.empty() ? name : scheme + "://" + name; }
  Error error(const arrow::Status& status, const std::string& name) const {
    return from_arrow(status, shown(name), remote);
  }
  // A file and its size.
  struct Opened {
    std::shared_ptr<arrow::io::RandomAccessFile> file;
    int64_t size = 0;
  };
  Result<Opened> open(const std::string& name) const {
    auto file = fs().OpenInputFile(name);
    if (!file.ok()) return error(file.status(), name);
    auto size = (*file)->GetSize();
    if (!size.ok()) return error(size.status(), name);
    return Opened{*file, *size};
  }
  // The next `length` bytes behind what was read so far: one request for a whole file where a server streams.
  Result<std::string> read_next(const Opened& opened, const std::string& name, int64_t length) const {
    std::string bytes(static_cast<size_t>(length), '\0');
    RETURN_IF_ERROR(expect_bytes(opened.file->Read(length, bytes.data()), name, length));
    return bytes;
  }
  Result<std::string> read_at(const Opened& opened, const std::string& name, int64_t offset,
                              int64_t length) const {
    std::string bytes(static_cast<size_t>(length), '\0');
    RETURN_IF_ERROR(expect_bytes(opened.file->ReadAt(offset, length, bytes.data()), name, length));
    return bytes;
  }

 private:
  // Fewer bytes than were asked for are an error.
  Result<void> expect_bytes(const arrow::Result<int64_t>& got, const std::string& name,
                            int64_t length) const {
    if (!got.ok()) return error(got.status(), name);
    if (*got != length) {
      return make_error(ErrorCode::kIo, "{}: {} bytes came instead of {}", shown(name), *got, length);
    }
    return {};
  }
};

FileSystem::FileSystem(std::unique_ptr<State> state) : state_(std::move(state)) {}
FileSystem::FileSystem(FileSystem&&) noexcept = default;
FileSystem& FileSystem::operator=(FileSystem&&) noexcept = default;
FileSystem::~FileSystem() = default;

Result<FileSystem> FileSystem::open(const std::string& uri, const FileSystemOptions& options) {
  auto state = std::make_unique<State>();
  state->uri = public_uri(uri);
  const std::string scheme = uri_scheme(uri);
  if (scheme.empty() || scheme == "file") {
    const std::string target =
        scheme.empty() ? "file://" + std::filesystem::absolute(uri).lexically_normal().string() : uri;
    auto fs = arrow::fs::FileSystemFromUri(target, &state->remote.root);
    if (!fs.ok()) return from_arrow(fs.status(), uri, {});
    state->remote.fs = *fs;
  } else {
    state->scheme = scheme;
    ASSIGN_OR_RETURN(state->remote, open_remote(uri, options));
  }
  std::string& root = state->remote.root;
  while (root.size() > 1 && root.back() == '/') root.pop_back();
  return FileSystem(std::move(state));
}

Result<std::string> FileSystem::full(const std::string& path) const {
  const std::string normal = std::filesystem::path(path).lexically_normal().string();
  if (normal == ".." || normal.starts_with("../") || normal.starts_with('/') ||
      path.find('\0') != std::string::npos) {
    return make_error(ErrorCode::kDenied, "{} leaves {}", path, state_->uri);
  }
  if (normal.empty() || normal == ".") return state_->remote.root;
  return state_->remote.root + "/" + normal;
}

Result<std::vector<FileEntry>> FileSystem::list(const std::string& folder) const {
  ASSIGN_OR_RETURN(const std::string base, full(folder));
  auto info = state_->fs().GetFileInfo(base);
  if (!info.ok()) return state_->error(info.status(), base);
  std::vector<arrow::fs::FileInfo> infos{*info};
  if (info->type() == arrow::fs::FileType::NotFound) {
    return make_error(ErrorCode::kNotFound, "{} is not there", state_->shown(base));
  }
  if (info->type() == arrow::fs::FileType::Directory) {
    arrow::fs::FileSelector selector;
    selector.base_dir = base;
    selector.recursive = true;
    auto found = state_->fs().GetFileInfo(selector);
    if (!found.ok()) return state_->error(found.status(), base);
    infos = *std::move(found);
  }
  std::vector<FileEntry> entries;
  for (const auto& one : infos) {
    if (one.type() != arrow::fs::FileType::File) continue;
    std::string relative = one.path().substr(std::min(one.path().size(), state_->remote.root.size()));
    if (relative.starts_with('/')) relative.erase(0, 1);
    entries.push_back({relative, static_cast<uint64_t>(std::max<int64_t>(one.size(), 0)),
                       one.mtime().time_since_epoch().count()});
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  return entries;
}

Result<FileEntry> FileSystem::stat(const std::string& path) const {
  ASSIGN_OR_RETURN(const std::string name, full(path));
  auto info = state_->fs().GetFileInfo(name);
  if (!info.ok()) return state_->error(info.status(), name);
  if (info->type() != arrow::fs::FileType::File) {
    return make_error(ErrorCode::kNotFound, "{} is not a file", state_->shown(name));
  }
  return FileEntry{path, static_cast<uint64_t>(info->size()), info->mtime().time_since_epoch().count()};
}

Result<std::string> FileSystem::read(const std::string& path) const {
  ASSIGN_OR_RETURN(const std::string name, full(path));
  ASSIGN_OR_RETURN(const State::Opened opened, state_->open(name));
  return state_->read_next(opened, name, opened.size);
}

Result<std::string> FileSystem::read_range(const std::string& path, uint64_t offset, uint64_t length) const {
  ASSIGN_OR_RETURN(const std::string name, full(path));
  ASSIGN_OR_RETURN(const State::Opened opened, state_->open(name));
  const auto size = static_cast<uint64_t>(opened.size);
  if (offset > size) {
    return make_error(ErrorCode::kInvalid, "{}: byte {} is behind the end at {}", state_->shown(name), offset,
                      size);
  }
  return state_->read_at(opened, name, static_cast<int64_t>(offset),
                         static_cast<int64_t>(std::min(length, size - offset)));
}

Result<void> FileSystem::read_pieces(const std::string& path,
                                     const std::function<Result<void>(std::string_view)>& use) const {
  ASSIGN_OR_RETURN(const std::string name, full(path));
  ASSIGN_OR_RETURN(const State::Opened opened, state_->open(name));
  for (int64_t at = 0; at < opened.size; at += kPieceBytes) {
    ASSIGN_OR_RETURN(const std::string piece,
                     state_->read_next(opened, name, std::min(kPieceBytes, opened.size - at)));
    RETURN_IF_ERROR(use(piece));
  }
  return {};
}

Result<void> FileSystem::write(const std::string& path, std::string_view bytes) const {
  static std::atomic<uint64_t> counter{0};
  ASSIGN_OR_RETURN(const std::string name, full(path));
  std::string temporary = name;
  const std::string& scheme = state_->scheme;
  const bool rename = scheme != "s3" && scheme != "gs" && scheme != "gcs";
  if (rename) {
    const std::string folder = std::filesystem::path(name).parent_path().string();
    if (auto made = state_->fs().CreateDir(folder, true); !made.ok()) return state_->error(made, folder);
    temporary = fmt::format("{}.tmp.{}.{}", name, ::getpid(), counter.fetch_add(1));
  }
  auto stream = state_->fs().OpenOutputStream(temporary);
  if (!stream.ok()) return state_->error(stream.status(), name);
  arrow::Status status = (*stream)->Write(bytes.data(), static_cast<int64_t>(bytes.size()));
  if (status.ok()) {
    status = (*stream)->Close();
  } else {
    (void)(*stream)->Abort();
  }
  if (status.ok() && rename) status = state_->fs().Move(temporary, name);
  if (!status.ok()) {
    if (rename) (void)state_->fs().DeleteFile(temporary);
    return state_->error(status, name);
  }
  return {};
}

Result<void> FileSystem::remove(const std::string& path) const {
  ASSIGN_OR_RETURN(const std::string name, full(path));
  if (auto status = state_->fs().DeleteFile(name); !status.ok()) return state_->error(status, name);
  return {};
}

}  // namespace flywheel
