// How an artifact comes into the store, in an order that a crash at any line cannot spoil:
//   1. reserve: a row that says that this writer lives (gc spares incoming/<id>-* while it is there)
//   2. stage:   every file to incoming/<id>-<n>, hashed on the way; the reservation is renewed meanwhile
//   3. claim:   one commit with a blob row and a reservation row for every SHA-256
//   4. publish: files synced and renamed to their content's name
//   5. commit:  the artifact with its version, files, inputs and aliases; the reservation ends
// A crash before 5 leaves files that nothing refers to and a reservation that runs out: gc removes both.
// A writer so slow that gc took it for dead finds its reservation gone at 5 and fails; nothing dangles.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <set>

#include "base/deadline.h"
#include "base/file.h"
#include "store/store.h"
#include "store/store_internal.h"

namespace flywheel::store {
namespace fs = std::filesystem;
namespace {

using Sources = std::map<std::string, std::string>;  // name in the artifact -> local file

// Every regular file below `folder`; links are followed (a hub's cache is made of them).
Result<Sources> walk(const std::string& folder) {
  Sources sources;
  std::error_code error;
  fs::recursive_directory_iterator it(folder, fs::directory_options::follow_directory_symlink, error);
  for (const fs::recursive_directory_iterator end; !error && it != end; it.increment(error)) {
    if (it.depth() > 50) {
      return make_error(ErrorCode::kInvalid, "{} is deeper than 50 folders: is there a link in a circle?",
                        it->path().string());
    }
    const fs::file_status status = it->status(error);
    if (error) break;
    if (fs::is_directory(status)) continue;
    if (!fs::is_regular_file(status)) {
      return make_error(ErrorCode::kInvalid, "{} is neither a file nor a folder", it->path().string());
    }
    sources[it->path().lexically_relative(folder).generic_string()] = it->path().string();
  }
  if (error) return make_error(ErrorCode::kIo, "cannot read {}: {}", folder, error.message());
  return sources;
}

Result<Sources> sources_of(const NewArtifact& request, bool& is_file) {
  Sources sources = request.files;
  is_file = false;
  if (!request.path.empty()) {
    std::error_code error;
    if (!fs::exists(request.path, error)) {
      return make_error(ErrorCode::kNotFound, "{}: no such file or folder", request.path);
    }
    if (fs::is_directory(request.path, error)) {
      ASSIGN_OR_RETURN(Sources found, walk(request.path));
      sources.merge(found);
    } else {
      is_file = sources.empty() && request.contents.empty();
      sources[fs::path(request.path).filename().string()] = request.path;
    }
  }
  for (const auto& [name, source] : sources) RETURN_IF_ERROR(check_path(name));
  for (const auto& [name, bytes] : request.contents) {
    RETURN_IF_ERROR(check_path(name));
    if (sources.contains(name)) return make_error(ErrorCode::kInvalid, "{} is given twice", name);
  }
  if (sources.empty() && request.contents.empty()) {
    return make_error(ErrorCode::kInvalid, "{}: an artifact needs at least one file{}", request.name,
                      request.path.empty() ? "" : "; " + request.path + " has none");
  }
  // "a" and "a/b" cannot both be files of one folder.
  std::set<std::string> names;
  for (const auto& [name, source] : sources) names.insert(name);
  for (const auto& [name, bytes] : request.contents) names.insert(name);
  for (const std::string& name : names) {
    for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
      if (names.contains(name.substr(0, slash))) {
        return make_error(ErrorCode::kInvalid, "{} cannot be both a file and a folder",
                          name.substr(0, slash));
      }
    }
  }
  return sources;
}

// The writer's sign of life in the database, given back at the end whatever happens.
class Reservation {
 public:
  static Result<std::unique_ptr<Reservation>> make(StoreState& state) {
    static std::atomic<uint64_t> counter{0};
    Database& db = *state.db;
    auto reservation = std::unique_ptr<Reservation>(new Reservation(state));
    auto made = db.transact(Access::kWrite, [&]() -> Result<void> {
      ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
      reservation->id_ = fmt::format("{}.{}.{}.{}", state.host, ::getpid(), now, counter.fetch_add(1));
      return reservation->add(now, "");
    });
    if (!made.ok()) return made.error();
    return reservation;
  }

  ~Reservation() {
    Database& db = *state_.db;
    (void)db.transact(Access::kWrite,
                      [&]() { return db.execute("DELETE FROM reservation WHERE id = $1", {id_}); });
  }

  const std::string& id() const { return id_; }

  // Called now and then while files are read.
  Result<void> renew() {
    if (since_renewal_.seconds() < kReservationMs / 1000.0 / 10) return {};
    since_renewal_.restart();
    Database& db = *state_.db;
    return db.transact(Access::kWrite, [&]() -> Result<void> {
      ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
      RETURN_IF_ERROR(
          db.execute("UPDATE reservation SET expires_ms = $1 WHERE id = $2", {now + kReservationMs, id_}));
      return {};
    });
  }

  // Inside a transaction: the row of one content.
  Result<void> add(int64_t now, const std::string& sha256) {
    RETURN_IF_ERROR(state_.db->execute("INSERT INTO reservation (id, sha256, expires_ms) VALUES ($1, $2, $3)",
                                       {id_, sha256, now + kReservationMs}));
    return {};
  }

  // Inside the last transaction: everything that was reserved still is.
  Result<void> check_and_end(size_t contents) {
    ASSIGN_OR_RETURN(const Rows rows,
                     state_.db->execute("DELETE FROM reservation WHERE id = $1 RETURNING sha256", {id_}));
    if (rows.size() == contents + 1) return {};
    return make_error(
        ErrorCode::kAborted,
        "the store's collection took this writer for dead after {} minutes of silence; try again",
        kReservationMs / 60'000);
  }

 private:
  explicit Reservation(StoreState& state) : state_(state) {}
  StoreState& state_;
  std::string id_;
  Stopwatch since_renewal_;
};

Result<std::vector<StagedFile>> stage_all(StoreState& state, Reservation& reservation,
                                          const NewArtifact& request, const Sources& sources,
                                          std::vector<ArtifactFile>& files) {
  std::vector<StagedFile> staged;
  const auto name = [&] { return fmt::format("{}-{}", reservation.id(), staged.size()); };
  const auto take = [&](const std::string& path, StagedFile file) {
    files.push_back({path, file.sha256(), file.size_bytes()});
    staged.push_back(std::move(file));
  };
  for (const auto& [path, source] : sources) {
    RETURN_IF_ERROR(reservation.renew());
    ASSIGN_OR_RETURN(StagedFile file,
                     state.blobs.stage(source, name(), request.ingest, [&] { return reservation.renew(); }));
    take(path, std::move(file));
  }
  for (const auto& [path, bytes] : request.contents) {
    ASSIGN_OR_RETURN(StagedFile file, state.blobs.stage_bytes(bytes, name()));
    take(path, std::move(file));
  }
  std::ranges::sort(files, {}, &ArtifactFile::path);
  return staged;
}

// The artifact that an earlier put with the same `once` made; its id, or 0.
Result<int64_t> made_before(Database& db, const std::string& once) {
  if (once.empty()) return int64_t{0};
  ASSIGN_OR_RETURN(const Rows rows, db.execute("SELECT id FROM artifact WHERE once = $1", {once}));
  return rows.empty() ? int64_t{0} : rows[0].integer(0);
}

// Inside the last transaction: the artifact's rows.
Result<Artifact> insert_artifact(StoreState& state, const NewArtifact& request, bool is_file,
                                 const std::vector<ArtifactFile>& files, const std::string& digest,
                                 uint64_t size_bytes) {
  Database& db = *state.db;
  // First, because it holds the name's counter until the commit: two first versions of one name are one after
  // the other, and the second sees the first one's kind.
  ASSIGN_OR_RETURN(const int64_t version, next_number(db, "artifact", request.name));
  ASSIGN_OR_RETURN(const Rows kinds,
                   db.execute("SELECT kind FROM artifact WHERE name = $1 LIMIT 1", {request.name}));
  if (!kinds.empty() && kinds[0].text(0) != request.kind) {
    return make_error(ErrorCode::kExists, "{} is the name of a {}; choose another name for this {}",
                      request.name, kinds[0].text(0), request.kind);
  }
  if (!request.run.empty()) {
    ASSIGN_OR_RETURN(const Rows runs, db.execute("SELECT id FROM run WHERE id = $1", {request.run}));
    if (runs.empty())
      return make_error(ErrorCode::kNotFound, "no run {}; `flywheel runs list` shows them", request.run);
  }
  ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
  const auto null_if_empty = [](const std::string& text) { return text.empty() ? Value() : Value(text); };
  ASSIGN_OR_RETURN(
      const Rows row,
      db.execute("INSERT INTO artifact (kind, name, version, is_file, digest, size_bytes, owner, run, "
                 "metadata, once, created_ms, removed_ms) VALUES "
                 "($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0) RETURNING id",
                 {request.kind, request.name, version, int64_t{is_file}, digest,
                  static_cast<int64_t>(size_bytes), state.owner, null_if_empty(request.run),
                  json_text(request.metadata), null_if_empty(request.once), now}));
  const int64_t id = row[0].integer(0);
  for (const ArtifactFile& file : files) {
    RETURN_IF_ERROR(
        db.execute("INSERT INTO artifact_file (artifact, path, sha256, size_bytes) VALUES ($1, $2, $3, $4)",
                   {id, file.path, file.sha256, static_cast<int64_t>(file.size_bytes)}));
  }
  for (const std::string& ref : request.inputs) {
    ASSIGN_OR_RETURN(const Artifact input, find_artifact(db, ref));
    RETURN_IF_ERROR(
        db.execute("INSERT INTO artifact_input (artifact, input) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                   {id, input.id}));
    if (request.run.empty()) continue;
    RETURN_IF_ERROR(db.execute("INSERT INTO run_input (run, artifact) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                               {request.run, input.id}));
  }
  ASSIGN_OR_RETURN(const Artifact artifact, load_artifact(db, id));
  for (const std::string& alias : request.aliases)
    RETURN_IF_ERROR(move_alias(db, artifact, alias, state.owner));
  return load_artifact(db, id);
}

Result<void> check_request(Database& db, const NewArtifact& request) {
  RETURN_IF_ERROR(check_name(request.name));
  RETURN_IF_ERROR(check_word("a kind", request.kind));
  // Before hours of copying, not after.
  return db.transact(Access::kRead, [&]() -> Result<void> {
    for (const std::string& ref : request.inputs) RETURN_IF_ERROR(find_artifact(db, ref));
    return {};
  });
}

}  // namespace

Result<Artifact> Store::put_artifact(const NewArtifact& request) {
  StoreState& state = *state_;
  Database& db = *state.db;
  RETURN_IF_ERROR(check_request(db, request));
  const auto earlier = [&]() -> Result<int64_t> { return made_before(db, request.once); };
  ASSIGN_OR_RETURN(const int64_t before, db.transact(Access::kRead, earlier));
  if (before != 0) return db.transact(Access::kRead, [&] { return load_artifact(db, before); });

  bool is_file = false;
  ASSIGN_OR_RETURN(const Sources sources, sources_of(request, is_file));
  ASSIGN_OR_RETURN(const auto reservation, Reservation::make(state));
  std::vector<ArtifactFile> files;
  ASSIGN_OR_RETURN(std::vector<StagedFile> staged, stage_all(state, *reservation, request, sources, files));

  std::map<std::string, uint64_t>
      contents;  // in order, so that two writers never wait for each other in a circle
  uint64_t size_bytes = 0;
  for (const ArtifactFile& file : files) {
    contents[file.sha256] = file.size_bytes;
    size_bytes += file.size_bytes;
  }
  RETURN_IF_ERROR(db.transact(Access::kWrite, [&]() -> Result<void> {
    ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
    for (const auto& [sha256, size] : contents) {
      RETURN_IF_ERROR(
          db.execute("INSERT INTO blob (sha256, size_bytes, created_ms) VALUES ($1, $2, $3) "
                     "ON CONFLICT DO NOTHING",
                     {sha256, static_cast<int64_t>(size), now}));
      RETURN_IF_ERROR(reservation->add(now, sha256));
    }
    return {};
  }));
  RETURN_IF_ERROR(state.blobs.publish(staged));

  ASSIGN_OR_RETURN(Artifact artifact, db.transact(Access::kWrite, [&]() -> Result<Artifact> {
    ASSIGN_OR_RETURN(const int64_t same, made_before(db, request.once));  // another process, meanwhile
    if (same != 0) return load_artifact(db, same);
    RETURN_IF_ERROR(reservation->check_and_end(contents.size()));
    const std::string digest = digest_of(files);
    if (request.if_same == IfSame::kReturnIt) {
      auto latest = find_artifact(db, request.name);
      if (latest.ok() && latest->digest == digest && latest->kind == request.kind) return latest;
    }
    return insert_artifact(state, request, is_file, files, digest, size_bytes);
  }));
  if (request.ingest == Ingest::kMove) {
    for (const auto& [path, source] : sources) ::unlink(source.c_str());
  }
  return artifact;
}

Result<Artifact> Store::put_source(const std::string& name, const std::string& uri, const std::string& digest,
                                   uint64_t size_bytes, const Json& metadata) {
  Database& db = *state_->db;
  RETURN_IF_ERROR(check_name(name));
  NewArtifact request{.kind = "source", .name = name, .metadata = metadata};
  request.metadata["uri"] = uri;
  return db.transact(Access::kWrite, [&]() -> Result<Artifact> {
    auto latest = find_artifact(db, name);
    if (latest.ok() && latest->kind == "source" && latest->digest == digest) return latest;
    return insert_artifact(*state_, request, false, {}, digest, size_bytes);
  });
}

}  // namespace flywheel::store
