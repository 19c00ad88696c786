#include "base/filesystem.h"

#include <arrow/buffer.h>
#include <arrow/filesystem/filesystem.h>
#include <arrow/filesystem/path_util.h>
#include <arrow/io/interfaces.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>

namespace flywheel {
namespace {

Error from_arrow(const arrow::Status& status, const std::string& path) {
  const std::string& what = status.message();
  ErrorCode code = ErrorCode::kIo;
  if (status.IsInvalid()) code = ErrorCode::kInvalid;
  if (status.IsNotImplemented()) code = ErrorCode::kUnavailable;
  if (status.IsKeyError() || what.find("No such file") != std::string::npos ||
      what.find("ath does not exist") != std::string::npos || what.find("not found") != std::string::npos) {
    code = ErrorCode::kNotFound;
  }
  return make_error(code, "{}: {}", path, what);
}

}  // namespace

struct FileSystem::State {
  std::shared_ptr<arrow::fs::FileSystem> fs;
  std::string root, uri;
  bool local = false;
};

FileSystem::FileSystem(std::unique_ptr<State> state) : state_(std::move(state)) {}
FileSystem::FileSystem(FileSystem&&) noexcept = default;
FileSystem& FileSystem::operator=(FileSystem&&) noexcept = default;
FileSystem::~FileSystem() = default;

std::string uri_scheme(const std::string& uri) {
  const size_t at = uri.find("://");
  return at == std::string::npos ? "" : uri.substr(0, at);
}

Result<FileSystem> FileSystem::open(const std::string& uri) {
  auto state = std::make_unique<State>();
  state->uri = uri;
  const std::string scheme = uri_scheme(uri);
  state->local = scheme.empty() || scheme == "file";
  std::string target = uri;
  if (scheme.empty()) target = "file://" + std::filesystem::absolute(uri).lexically_normal().string();
  auto fs = arrow::fs::FileSystemFromUri(target, &state->root);
  if (!fs.ok()) return from_arrow(fs.status(), uri);
  state->fs = *fs;
  while (state->root.size() > 1 && state->root.back() == '/') state->root.pop_back();
  return FileSystem(std::move(state));
}

Result<std::string> FileSystem::full(const std::string& path) const {
  const std::string normal = std::filesystem::path(path).lexically_normal().string();
  if (normal == ".." || normal.starts_with("../") || normal.starts_with('/') ||
      path.find('\0') != std::string::npos) {
    return make_error(ErrorCode::kDenied, "{} leaves {}", path, state_->uri);
  }
  if (normal.empty() || normal == ".") return state_->root;
  return state_->root + "/" + normal;
}

Result<std::vector<FileEntry>> FileSystem::list(const std::string& folder) const {
  ASSIGN_OR_RETURN(const std::string base, full(folder));
  auto info = state_->fs->GetFileInfo(base);
  if (!info.ok()) return from_arrow(info.status(), base);
  std::vector<arrow::fs::FileInfo> infos{*info};
  if (info->type() == arrow::fs::FileType::NotFound) {
    return make_error(ErrorCode::kNotFound, "{} is not there", base);
  }
  if (info->type() == arrow::fs::FileType::Directory) {
    arrow::fs::FileSelector selector;
    selector.base_dir = base;
    selector.recursive = true;
    auto found = state_->fs->GetFileInfo(selector);
    if (!found.ok()) return from_arrow(found.status(), base);
    infos = *std::move(found);
  }
  std::vector<FileEntry> entries;
  for (const auto& one : infos) {
    if (one.type() != arrow::fs::FileType::File) continue;
    std::string relative = one.path().substr(std::min(one.path().size(), state_->root.size()));
    if (relative.starts_with('/')) relative.erase(0, 1);
    entries.push_back({relative, static_cast<uint64_t>(std::max<int64_t>(one.size(), 0)),
                       one.mtime().time_since_epoch().count()});
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  return entries;
}

Result<FileEntry> FileSystem::stat(const std::string& path) const {
  ASSIGN_OR_RETURN(const std::string name, full(path));
  auto info = state_->fs->GetFileInfo(name);
  if (!info.ok()) return from_arrow(info.status(), name);
  if (info->type() != arrow::fs::FileType::File) {
    return make_error(ErrorCode::kNotFound, "{} is not a file", name);
  }
  return FileEntry{path, static_cast<uint64_t>(info->size()), info->mtime().time_since_epoch().count()};
}

Result<std::string> FileSystem::read(const std::string& path) const {
  ASSIGN_OR_RETURN(const FileEntry entry, stat(path));
  return read_range(path, 0, entry.size_bytes);
}

Result<std::string> FileSystem::read_range(const std::string& path, uint64_t offset, uint64_t length) const {
  ASSIGN_OR_RETURN(const std::string name, full(path));
  auto file = state_->fs->OpenInputFile(name);
  if (!file.ok()) return from_arrow(file.status(), name);
  std::string bytes(length, '\0');
  auto got = (*file)->ReadAt(static_cast<int64_t>(offset), static_cast<int64_t>(length), bytes.data());
  if (!got.ok()) return from_arrow(got.status(), name);
  bytes.resize(static_cast<size_t>(*got));
  return bytes;
}

Result<void> FileSystem::write(const std::string& path, std::string_view bytes) const {
  static std::atomic<uint64_t> counter{0};
  ASSIGN_OR_RETURN(const std::string name, full(path));
  std::string temporary = name;
  const bool rename = uri_scheme(state_->uri) != "s3" && uri_scheme(state_->uri) != "gs";
  if (rename) {
    const std::string folder = std::filesystem::path(name).parent_path().string();
    if (auto made = state_->fs->CreateDir(folder, true); !made.ok()) return from_arrow(made, folder);
    temporary = fmt::format("{}.tmp.{}.{}", name, ::getpid(), counter.fetch_add(1));
  }
  auto stream = state_->fs->OpenOutputStream(temporary);
  if (!stream.ok()) return from_arrow(stream.status(), name);
  arrow::Status status = (*stream)->Write(bytes.data(), static_cast<int64_t>(bytes.size()));
  if (status.ok()) status = (*stream)->Close();
  if (status.ok() && rename) status = state_->fs->Move(temporary, name);
  if (!status.ok()) {
    if (rename) (void)state_->fs->DeleteFile(temporary);
    return from_arrow(status, name);
  }
  return {};
}

Result<void> FileSystem::remove(const std::string& path) const {
  ASSIGN_OR_RETURN(const std::string name, full(path));
  if (auto status = state_->fs->DeleteFile(name); !status.ok()) return from_arrow(status, name);
  return {};
}

}  // namespace flywheel
