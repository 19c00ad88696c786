// The only place where runs are recorded and artifacts are named, versioned, promoted and traced.
//
// A store is one folder: flywheel.db (SQLite, WAL) with every name, blobs/ with every file by its SHA-256,
// and views/, folders of hard links that show an artifact's files under their own names. With a
// postgres:// address the names live in PostgreSQL and the files in the folder of env::home(). The page
// docs/formats/store.md has the tables.
//
//   Store store = Store::open().value();                       // FLYWHEEL_HOME, or ~/.flywheel
//   Run run = store.create_run({.name = "prepare", .kind = "data"}).value();
//   Artifact docs = store.put_artifact({.kind = "dataset", .name = "docs", .path = "out/shards",
//                                       .inputs = {"postgresql-doc-15:1"}, .run = run.id()}).value();
//   Artifact model = store.resolve("tiny@prod").value();       // "tiny", "tiny:3", "tiny@latest"
//   std::string folder = store.path_of(model).value();         // read-only files, for reading and mapping
//
// Ownership: Store is a handle; copies share one connection, closed with the last handle or run.
// Threads and processes: any number of both may use one store at once. Do not carry a handle over fork().
// Killed at any moment, a process leaves the store consistent: an artifact is there whole or not at all, and
// what it left lying is removed by gc().
// Errors: kNotFound names what was looked for and how to list what there is; kInvalid a name that cannot be;
// kExists a name taken by another kind; kCorrupt content that is not what its name says; kIo disk full and
// the like, nothing was changed then; kUnavailable a database that does not answer; kDeadline one kept busy
// by others for 60 s.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "store/artifact.h"
#include "store/run.h"

namespace flywheel::store {

class StoreState;

struct ArtifactFilter {
  std::string kind = {}, name = {};  // empty: all
  bool removed = false;              // also those whose content was removed
};

struct RunFilter {
  std::string name = {}, kind = {};
  std::map<std::string, std::string> tags = {};  // all of these
  int64_t limit = 1000;                          // newest first
};

struct AliasChange {
  std::string alias;
  int64_t version = 0;  // 0: the alias was taken away
  std::string owner;
  int64_t time_ms = 0;
};

struct GcReport {
  int64_t blobs_removed = 0, blobs_kept = 0, blobs_reserved = 0;
  uint64_t bytes_freed = 0;
  int64_t leftovers_removed = 0;  // temporary files of writers that died, views of what is gone
};

struct VerifyReport {
  struct Problem {
    std::string what;  // "corrupt: 3fa9... has the SHA-256 77b0..., in tiny:3 model.safetensors; ..."
    std::string sha256;
    std::vector<std::string> artifacts;  // "tiny:3 model.safetensors"
  };
  int64_t blobs_checked = 0, artifacts_checked = 0;
  int64_t by_reference = 0;  // sources: their data stays where it is, and is not read
  uint64_t bytes_checked = 0;
  std::vector<Problem> problems;
};

class Store {
 public:
  // `where`: a folder (made if missing), a postgres:// address, or "" for env::home(). `files`: the folder
  // for blobs, by default `where` itself or env::home().
  static Result<Store> open(const std::string& where = "", const std::string& files = "");
  const std::string& home() const;

  // --- artifacts ---
  // Stores the files and gives the name its next version, in one commit at the end.
  Result<Artifact> put_artifact(const NewArtifact& request);
  // Records data that stays where it is (a folder of raw files, a URL): an artifact of kind "source" without
  // files here. The same digest again gives the version that is there.
  Result<Artifact> put_source(const std::string& name, const std::string& uri, const std::string& digest,
                              uint64_t size_bytes, const Json& metadata = Json::object());
  // "name" (its latest), "name:3", "name@alias".
  Result<Artifact> resolve(const std::string& ref);
  Result<std::vector<Artifact>> list_artifacts(const ArtifactFilter& filter = {});

  // The file, when it was made from one, else a folder with all files under their names. `verify` reads
  // everything and compares hashes first.
  enum class Verify { kNo, kYes };
  Result<std::string> path_of(const Artifact& artifact, Verify verify = Verify::kNo);

  // Moves `alias` of the name in `ref` to that version, at once for all readers. "latest" moves by itself.
  Result<void> set_alias(const std::string& ref, const std::string& alias);
  Result<void> remove_alias(const std::string& name, const std::string& alias);
  Result<std::vector<AliasChange>> alias_history(const std::string& name);  // oldest first

  // Gives up the content; name, version and lineage stay, and the number is not used again. kDenied while an
  // alias other than latest points there.
  Result<void> remove_artifact(const std::string& ref);

  // --- runs ---
  Result<Run> create_run(const NewRun& request);
  // Opens a run that exists, to go on with it: its status is running again.
  Result<Run> resume_run(const std::string& id);
  Result<RunInfo> run_info(const std::string& id);
  // Gives a run these tags, whether it is running or has ended, and takes the `removed` keys away.
  Result<void> tag_run(const std::string& id, const std::map<std::string, std::string>& tags,
                       const std::vector<std::string>& removed = {});
  Result<std::vector<RunInfo>> list_runs(const RunFilter& filter = {});
  // Points by ascending step, each step once.
  Result<std::vector<MetricPoint>> metric(const std::string& run, const std::string& name);

  // --- lineage ---
  enum class Direction { kUpstream, kDownstream };  // what it was made from; what was made from it
  Result<LineageNode> lineage(const std::string& ref, Direction direction = Direction::kUpstream);

  // --- upkeep ---
  // Removes blobs that no artifact refers to and no writer has reserved. Safe beside writers and readers.
  enum class GcMode { kRemove, kDryRun };
  Result<GcReport> gc(GcMode mode = GcMode::kRemove);
  // Checks the database and reads every blob. `progress(done_bytes, all_bytes)` may be empty.
  Result<VerifyReport> verify(const std::function<void(uint64_t, uint64_t)>& progress = {});

 private:
  explicit Store(std::shared_ptr<StoreState> state) : state_(std::move(state)) {}
  std::shared_ptr<StoreState> state_;
};

}  // namespace flywheel::store
