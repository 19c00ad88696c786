// Views: an artifact's files under their own names, as hard links to blobs. A view is made aside and renamed,
// so that it is seen whole or not at all, and any number of processes may want the same one.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "base/file.h"
#include "base/posix.h"
#include "store/store_internal.h"

namespace flywheel::store {
namespace {

// Every file of the view is the blob itself (one inode). A blob that was replaced leaves its old views
// behind.
bool is_whole(const BlobFolder& blobs, const Artifact& artifact, const std::string& view) {
  for (const ArtifactFile& file : artifact.files) {
    struct stat linked {
    }, blob{};
    if (::stat((view + "/" + file.path).c_str(), &linked) != 0 ||
        ::stat(blobs.path_of(file.sha256).c_str(), &blob) != 0 || linked.st_ino != blob.st_ino ||
        linked.st_dev != blob.st_dev) {
      return false;
    }
  }
  return true;
}

Result<void> link_files(const BlobFolder& blobs, const Artifact& artifact, const std::string& folder) {
  for (const ArtifactFile& file : artifact.files) {
    const std::string path = folder + "/" + file.path;
    RETURN_IF_ERROR(make_folders(path.substr(0, path.rfind('/'))));
    const std::string blob = blobs.path_of(file.sha256);
    if (::link(blob.c_str(), path.c_str()) == 0) continue;
    if (errno == ENOENT) {
      return make_error(ErrorCode::kCorrupt,
                        "{} {}: blob {} is missing; `flywheel store verify` shows what else", artifact.ref(),
                        file.path, file.sha256);
    }
    // File systems without hard links, or a file with too many.
    if (::symlink(blob.c_str(), path.c_str()) != 0) return system_error("cannot link", path);
  }
  return {};
}

}  // namespace

Result<std::string> view_of(const StoreState& state, const Artifact& artifact) {
  static std::atomic<uint64_t> counter{0};
  const std::string views = state.home + "/views";
  const std::string view = views + "/" + artifact.digest;
  if (is_whole(state.blobs, artifact, view)) return view;
  const std::string aside =
      fmt::format("{}/.new-{}-{}-{}", views, state.host, ::getpid(), counter.fetch_add(1));
  RETURN_IF_ERROR(make_folders(aside));
  if (auto linked = link_files(state.blobs, artifact, aside); !linked.ok()) {
    (void)remove_all(aside);
    return linked.error();
  }
  // A damaged view is exchanged for the new one in one step; then the old one goes.
  while (::rename(aside.c_str(), view.c_str()) != 0) {
    if (errno != EEXIST && errno != ENOTEMPTY) return system_error("cannot make", view);
    if (is_whole(state.blobs, artifact, view)) break;  // another process was quicker
    if (::renameat2(AT_FDCWD, aside.c_str(), AT_FDCWD, view.c_str(), RENAME_EXCHANGE) == 0) break;
    if (errno != ENOENT) return system_error("cannot replace", view);  // ENOENT: a collection took it; again
  }
  (void)remove_all(aside);
  return view;
}

}  // namespace flywheel::store
