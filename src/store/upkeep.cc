// Garbage collection and verification.
//
// gc takes a blob only inside an exclusive transaction that saw no artifact and no reservation refer to it,
// and unlinks its file before that transaction ends. A writer reserves inside a transaction of its own,
// before it looks whether the file is there: it either comes first, and gc spares the blob, or second, and
// finds the file gone and brings its own. Killed between unlink and commit, gc leaves a row without a file
// that nothing refers to; the next one removes it.
#include <sys/stat.h>
#include <unistd.h>

#include <map>

#include "base/file.h"
#include "store/metrics.h"
#include "store/store.h"
#include "store/store_internal.h"

namespace flywheel::store {
namespace {

constexpr int64_t kBatch = 256;  // blobs a transaction: writers wait for one batch at most
constexpr const char* kFree =
    "NOT EXISTS (SELECT 1 FROM artifact_file f WHERE f.sha256 = blob.sha256) AND "
    "NOT EXISTS (SELECT 1 FROM reservation r WHERE r.sha256 = blob.sha256)";

class Collector {
 public:
  Collector(StoreState& state, Store::GcMode mode)
      : state_(state), db_(*state.db), remove_(mode == Store::GcMode::kRemove) {}

  Result<GcReport> run() {
    RETURN_IF_ERROR(end_reservations_of_the_dead());
    if (remove_) {
      for (bool more = true; more;) {
        ASSIGN_OR_RETURN(more, remove_free_blobs());
      }
      RETURN_IF_ERROR(remove_incoming());
      RETURN_IF_ERROR(remove_unknown_files());
      RETURN_IF_ERROR(remove_views());
    }
    RETURN_IF_ERROR(count());
    return report_;
  }

 private:
  Result<void> end_reservations_of_the_dead() {
    if (!remove_) return {};
    return db_.transact(Access::kExclusive, [&]() -> Result<void> {
      ASSIGN_OR_RETURN(const int64_t now, db_.now_ms());
      RETURN_IF_ERROR(
          db_.execute("DELETE FROM reservation WHERE id IN "
                      "(SELECT id FROM reservation WHERE expires_ms < $1)",
                      {now}));
      return {};
    });
  }

  // One batch; true when there may be more.
  Result<bool> remove_free_blobs() {
    return db_.transact(Access::kExclusive, [&]() -> Result<bool> {
      ASSIGN_OR_RETURN(const Rows rows,
                       db_.execute("DELETE FROM blob WHERE sha256 IN (SELECT sha256 FROM blob WHERE " +
                                       std::string(kFree) + " LIMIT $1) RETURNING sha256, size_bytes",
                                   {kBatch}));
      for (const Row& row : rows) {
        if (::unlink(state_.blobs.path_of(row.text(0)).c_str()) != 0)
          continue;  // its writer died before publishing
        ++report_.blobs_removed;
        report_.bytes_freed += static_cast<uint64_t>(row.integer(1));
      }
      return static_cast<int64_t>(rows.size()) == kBatch;
    });
  }

  // What writers that are gone left in incoming/: names are <reservation>-<number>.
  Result<void> remove_incoming() {
    ASSIGN_OR_RETURN(const auto names, list_folder(state_.blobs.incoming()));
    for (const std::string& name : names) {
      RETURN_IF_ERROR(db_.transact(Access::kExclusive, [&]() -> Result<void> {
        ASSIGN_OR_RETURN(const Rows alive,
                         db_.execute("SELECT id FROM reservation WHERE id = $1 AND sha256 = ''",
                                     {name.substr(0, name.rfind('-'))}));
        const std::string path = state_.blobs.incoming() + "/" + name;
        const uint64_t size = file_size(path).value_or(0);
        if (alive.empty() && ::unlink(path.c_str()) == 0) {
          ++report_.leftovers_removed;
          report_.bytes_freed += size;
        }
        return {};
      }));
    }
    return {};
  }

  // Files under blobs/ without a row: the database was restored from an older copy, or somebody put them
  // there.
  Result<void> remove_unknown_files() {
    ASSIGN_OR_RETURN(const auto shards, list_folder(state_.blobs.blobs()));
    for (const std::string& shard : shards) {
      ASSIGN_OR_RETURN(const auto names, list_folder(state_.blobs.blobs() + "/" + shard));
      if (names.empty()) continue;
      RETURN_IF_ERROR(db_.transact(Access::kExclusive, [&]() -> Result<void> {
        for (const std::string& name : names) {
          const std::string path = state_.blobs.blobs() + "/" + shard + "/" + name;
          const uint64_t size = file_size(path).value_or(0);
          ASSIGN_OR_RETURN(const Rows known, db_.execute("SELECT 1 FROM blob WHERE sha256 = $1", {name}));
          if (!known.empty() || ::unlink(path.c_str()) != 0) continue;
          ++report_.leftovers_removed;
          report_.bytes_freed += size;
        }
        return {};
      }));
    }
    return {};
  }

  // Views of digests that no artifact has any more, and views whose maker died before the rename.
  Result<void> remove_views() {
    const std::string views = state_.home + "/views";
    if (!path_exists(views)) return {};
    ASSIGN_OR_RETURN(const auto names, list_folder(views));
    for (const std::string& name : names) {
      if (name.starts_with(".")) {
        struct stat info {};
        const std::string path = views + "/" + name;
        if (::stat(path.c_str(), &info) != 0 || ::time(nullptr) - info.st_mtime < kReservationMs / 1000)
          continue;
        RETURN_IF_ERROR(remove_all(path));
        ++report_.leftovers_removed;
        continue;
      }
      const std::string doomed = fmt::format("{}/.old-{}-{}", views, ::getpid(), name);
      ASSIGN_OR_RETURN(const bool taken, db_.transact(Access::kExclusive, [&]() -> Result<bool> {
        ASSIGN_OR_RETURN(const Rows rows,
                         db_.execute("SELECT id FROM artifact WHERE digest = $1 AND removed_ms = 0 "
                                     "LIMIT 1",
                                     {name}));
        return rows.empty() && ::rename((views + "/" + name).c_str(), doomed.c_str()) == 0;
      }));
      if (!taken) continue;
      RETURN_IF_ERROR(remove_all(doomed));
      ++report_.leftovers_removed;
    }
    return {};
  }

  Result<void> count() {
    return db_.transact(Access::kRead, [&]() -> Result<void> {
      ASSIGN_OR_RETURN(const Rows kept, db_.execute("SELECT count(*) FROM blob WHERE EXISTS (SELECT 1 FROM "
                                                    "artifact_file f WHERE f.sha256 = blob.sha256)"));
      report_.blobs_kept = kept[0].integer(0);
      ASSIGN_OR_RETURN(
          const Rows reserved,
          db_.execute("SELECT count(*) FROM blob WHERE EXISTS (SELECT 1 FROM reservation r WHERE r.sha256 "
                      "= blob.sha256) AND NOT EXISTS (SELECT 1 FROM artifact_file f WHERE f.sha256 = "
                      "blob.sha256)"));
      report_.blobs_reserved = reserved[0].integer(0);
      if (remove_) return {};
      ASSIGN_OR_RETURN(const Rows free,
                       db_.execute("SELECT count(*), CAST(coalesce(sum(size_bytes), 0) AS BIGINT) "
                                   "FROM blob WHERE " +
                                   std::string(kFree)));
      report_.blobs_removed = free[0].integer(0);
      report_.bytes_freed = static_cast<uint64_t>(free[0].integer(1));
      return {};
    });
  }

  StoreState& state_;
  Database& db_;
  bool remove_;
  GcReport report_;
};

class Verifier {
 public:
  explicit Verifier(StoreState& state) : state_(state), db_(*state.db) {}

  Result<VerifyReport> run(const std::function<void(uint64_t, uint64_t)>& progress) {
    RETURN_IF_ERROR(check_database());
    uint64_t all_bytes = 0;
    for (const auto& [sha256, blob] : blobs_) all_bytes += blob.size_bytes;
    for (const auto& [sha256, blob] : blobs_) {
      RETURN_IF_ERROR(check_blob(sha256, blob));
      ++report_.blobs_checked;
      report_.bytes_checked += blob.size_bytes;
      if (progress) progress(report_.bytes_checked, all_bytes);
    }
    return report_;
  }

 private:
  struct Blob {
    uint64_t size_bytes = 0;
    std::vector<std::string> used_by;    // "tiny:3 model.safetensors"
    std::vector<std::string> artifacts;  // "tiny:3"
  };

  // One snapshot: the database's own checks, every artifact's digest, every metric's checksum; and what
  // blobs there should be.
  Result<void> check_database() {
    return db_.transact(Access::kRead, [&]() -> Result<void> {
      ASSIGN_OR_RETURN(const auto problems, db_.integrity_problems());
      for (const std::string& problem : problems) report_.problems.push_back({problem, "", {}});
      ASSIGN_OR_RETURN(
          const Rows artifacts,
          db_.execute("SELECT id FROM artifact WHERE removed_ms = 0 AND kind <> 'source' ORDER BY id"));
      for (const Row& row : artifacts) {
        ASSIGN_OR_RETURN(const Artifact artifact, load_artifact(db_, row.integer(0)));
        ++report_.artifacts_checked;
        if (digest_of(artifact.files) != artifact.digest) {
          report_.problems.push_back(
              {fmt::format("corrupt: the list of files of {} has another digest than {}", artifact.ref(),
                           artifact.digest),
               "",
               {artifact.ref()}});
        }
        for (const ArtifactFile& file : artifact.files) {
          Blob& blob = blobs_[file.sha256];
          blob.size_bytes = file.size_bytes;
          blob.used_by.push_back(artifact.ref() + " " + file.path);
          blob.artifacts.push_back(artifact.ref());
        }
      }
      ASSIGN_OR_RETURN(const Rows sources,
                       db_.execute("SELECT id FROM artifact WHERE removed_ms = 0 AND kind = 'source'"));
      report_.by_reference = std::ssize(sources);
      ASSIGN_OR_RETURN(const Rows series, db_.execute("SELECT run, name FROM metric"));
      for (const Row& row : series) RETURN_IF_ERROR(check_metric(row.text(0), row.text(1)));
      return {};
    });
  }

  Result<void> check_metric(const std::string& run, const std::string& name) {
    ASSIGN_OR_RETURN(const Rows chunks,
                     db_.execute("SELECT data FROM metric_chunk WHERE run = $1 AND name = $2", {run, name}));
    std::vector<MetricPoint> points;
    for (const Row& chunk : chunks) {
      points.clear();
      if (auto unpacked = unpack_points(chunk.bytes(0), points); !unpacked.ok()) {
        report_.problems.push_back(
            {fmt::format("corrupt: run {} metric {}: {}", run, name, unpacked.error().message), "", {}});
      }
    }
    return {};
  }

  Result<void> check_blob(const std::string& sha256, const Blob& blob) {
    const std::string path = state_.blobs.path_of(sha256);
    const Result<void> sound = check_content(path, sha256, blob.size_bytes);
    if (sound.ok()) return {};
    if (sound.error().code == ErrorCode::kNotFound) {
      // Removed since the snapshot, by remove_artifact and gc?
      ASSIGN_OR_RETURN(const Rows still, db_.transact(Access::kRead, [&] {
        return db_.execute("SELECT 1 FROM artifact_file WHERE sha256 = $1 LIMIT 1", {sha256});
      }));
      if (still.empty()) return {};
    }
    std::string used_by;
    for (const std::string& use : blob.used_by) used_by += (used_by.empty() ? ", in " : ", ") + use;
    report_.problems.push_back(
        {fmt::format("{}{}; {}", sound.error().to_string(), used_by, mend_advice(blob.artifacts[0])), sha256,
         blob.used_by});
    return {};
  }

  StoreState& state_;
  Database& db_;
  std::map<std::string, Blob> blobs_;
  VerifyReport report_;
};

}  // namespace

Result<GcReport> Store::gc(GcMode mode) {
  return Collector(*state_, mode).run();
}

Result<VerifyReport> Store::verify(const std::function<void(uint64_t, uint64_t)>& progress) {
  return Verifier(*state_).run(progress);
}

}  // namespace flywheel::store
