#include "store/store.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <sstream>

#include "base/config.h"
#include "base/env.h"
#include "base/file.h"
#include "base/hash.h"
#include "store/store_internal.h"

namespace flywheel::store {
namespace {

std::string user_name() {
  std::array<char, 4096> buffer{};
  struct passwd entry {};
  struct passwd* found = nullptr;
  if (getpwuid_r(::geteuid(), &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr) {
    return found->pw_name;
  }
  return std::to_string(::geteuid());
}

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

// A name that is not there, with the nearest one that is.
Error no_such_artifact(Database& db, const std::string& ref, const std::string& name) {
  std::vector<std::string> names;
  if (auto rows = db.execute("SELECT DISTINCT name FROM artifact WHERE removed_ms = 0"); rows.ok()) {
    for (const Row& row : rows.value()) names.push_back(row.text(0));
  }
  const std::string near = nearest_name(name, names);
  return make_error(ErrorCode::kNotFound, "no artifact {}; {}`flywheel store list` shows them", ref,
                    near.empty() || near == name ? "" : "did you mean " + near + "? ");
}

constexpr const char* kArtifactColumns =
    "SELECT id, kind, name, version, is_file, digest, size_bytes, owner, run, metadata, created_ms, "
    "removed_ms, "
    "(SELECT max(version) FROM artifact l WHERE l.name = artifact.name AND l.removed_ms = 0) FROM artifact ";

Result<Artifact> read_artifact(Database& db, const Row& row) {
  Artifact artifact;
  artifact.id = row.integer(0);
  artifact.kind = row.text(1);
  artifact.name = row.text(2);
  artifact.version = row.integer(3);
  artifact.is_file = row.integer(4) != 0;
  artifact.digest = row.text(5);
  artifact.size_bytes = static_cast<uint64_t>(row.integer(6));
  artifact.owner = row.text(7);
  artifact.run = row.text(8);
  ASSIGN_OR_RETURN(artifact.metadata, parse_json(row.text(9)));
  artifact.created_ms = row.integer(10);
  artifact.removed_ms = row.integer(11);
  ASSIGN_OR_RETURN(
      const Rows files,
      db.execute("SELECT path, sha256, size_bytes FROM artifact_file WHERE artifact = $1", {artifact.id}));
  for (const Row& file : files) {
    artifact.files.push_back({file.text(0), file.text(1), static_cast<uint64_t>(file.integer(2))});
  }
  // By bytes: the server's collation may have its own idea of order.
  std::ranges::sort(artifact.files, {}, &ArtifactFile::path);
  ASSIGN_OR_RETURN(const Rows aliases,
                   db.execute("SELECT alias FROM alias WHERE artifact = $1 ORDER BY alias", {artifact.id}));
  for (const Row& alias : aliases) artifact.aliases.push_back(alias.text(0));
  if (artifact.removed_ms == 0 && artifact.version == row.integer(12))
    artifact.aliases.emplace_back("latest");
  return artifact;
}

// "host=10.0.0.1 password=x" is one way to call a server, and could be the name of a folder.
bool has_libpq_key(const std::string& place) {
  std::istringstream words(place);
  for (std::string word; words >> word;) {
    for (const char* key :
         {"host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service", "sslmode"}) {
      if (word.starts_with(std::string(key) + "=")) return true;
    }
  }
  return false;
}

// Whether all parts between slashes stay below the folder that they are put in.
bool parts_stay_below(const std::string& path) {
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part = std::string_view(path).substr(begin, end - begin);
    if (part.empty() || part == "." || part == ".." || part.size() > 255) return false;
    begin = end + 1;
  }
  return true;
}

}  // namespace

std::string json_text(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<void> check_name(const std::string& name) {
  const auto good = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '_' || c == '-' || c == '/';
  };
  if (!name.empty() && name.size() <= 200 && std::ranges::all_of(name, good) &&
      std::isalnum(static_cast<unsigned char>(name[0])) != 0 && parts_stay_below(name)) {
    return {};
  }
  return make_error(
      ErrorCode::kInvalid,
      "\"{}\" cannot be a name: letters, digits and . _ - / are, a letter or digit first, at most "
      "200, no part between / empty, . or ..",
      name);
}

Result<void> check_word(const std::string& what, const std::string& word) {
  const auto good = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' || c == '.';
  };
  if (!word.empty() && word.size() <= 60 && std::ranges::all_of(word, good) &&
      std::isalpha(static_cast<unsigned char>(word[0])) != 0) {
    return {};
  }
  return make_error(ErrorCode::kInvalid, "\"{}\" cannot be {}: letters, digits and . _ - are, a letter first",
                    word, what);
}

Result<void> check_path(const std::string& path) {
  if (path.size() <= 1000 && path.find('\0') == std::string::npos && path.find('\n') == std::string::npos &&
      parts_stay_below(path)) {
    return {};
  }
  return make_error(
      ErrorCode::kInvalid,
      "\"{}\" cannot be a file's name in an artifact: parts between / , none of them empty, . or ..", path);
}

std::string mend_advice(const std::string& ref) {
  return fmt::format(
      "`flywheel store remove {}` and make it again (pull, prepare), which replaces the file, or restore the "
      "file from a backup",
      ref);
}

std::string digest_of(const std::vector<ArtifactFile>& files) {
  Sha256 sha;
  for (const ArtifactFile& file : files)
    sha.update(fmt::format("{} {} {}\n", file.sha256, file.size_bytes, file.path));
  return sha.hex();
}

Result<int64_t> next_number(Database& db, const std::string& scope, const std::string& name) {
  ASSIGN_OR_RETURN(
      const Rows rows,
      db.execute("INSERT INTO counter (scope, name, value) VALUES ($1, $2, 1) ON CONFLICT (scope, name) "
                 "DO UPDATE SET value = counter.value + 1 RETURNING value",
                 {scope, name}));
  return rows[0].integer(0);
}

Result<Artifact> load_artifact(Database& db, int64_t id) {
  ASSIGN_OR_RETURN(const Rows rows, db.execute(std::string(kArtifactColumns) + "WHERE id = $1", {id}));
  if (rows.empty()) return make_error(ErrorCode::kNotFound, "no artifact with id {}", id);
  return read_artifact(db, rows[0]);
}

Result<Artifact> find_artifact(Database& db, const std::string& ref) {
  const size_t mark = ref.find_first_of(":@");
  const std::string name = ref.substr(0, mark);
  RETURN_IF_ERROR(check_name(name));
  const std::string columns = kArtifactColumns;
  const std::string which = mark == std::string::npos ? "latest" : ref.substr(mark + 1);
  Rows rows;
  if (mark != std::string::npos && ref[mark] == ':') {
    int64_t version = 0;
    const auto [end, error] = std::from_chars(which.data(), which.data() + which.size(), version);
    if (error != std::errc() || end != which.data() + which.size()) {
      return make_error(ErrorCode::kInvalid, "{}: a version is a number; an alias is written {}@{}", ref,
                        name, which);
    }
    ASSIGN_OR_RETURN(rows, db.execute(columns + "WHERE name = $1 AND version = $2", {name, version}));
  } else if (which == "latest") {
    ASSIGN_OR_RETURN(
        rows,
        db.execute(columns + "WHERE name = $1 AND removed_ms = 0 ORDER BY version DESC LIMIT 1", {name}));
  } else {
    ASSIGN_OR_RETURN(
        rows, db.execute(columns + "WHERE id = (SELECT artifact FROM alias WHERE name = $1 AND alias = $2)",
                         {name, which}));
  }
  if (rows.empty()) return no_such_artifact(db, ref, name);
  return read_artifact(db, rows[0]);
}

Result<void> move_alias(Database& db, const Artifact& to, const std::string& alias,
                        const std::string& owner) {
  RETURN_IF_ERROR(check_word("an alias", alias));
  if (alias == "latest") {
    return make_error(ErrorCode::kInvalid, "latest is always the newest version of {}; choose another alias",
                      to.name);
  }
  ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
  RETURN_IF_ERROR(
      db.execute("INSERT INTO alias (name, alias, artifact) VALUES ($1, $2, $3) ON CONFLICT (name, alias) "
                 "DO UPDATE SET artifact = excluded.artifact",
                 {to.name, alias, to.id}));
  RETURN_IF_ERROR(db.execute(
      "INSERT INTO alias_change (name, alias, version, owner, time_ms) VALUES ($1, $2, $3, $4, $5)",
      {to.name, alias, to.version, owner, now}));
  return {};
}

Result<Store> Store::open(const std::string& where, const std::string& files) {
  auto state = std::make_shared<StoreState>();
  std::string place = where.empty() ? env::store() : where;
  if (place.empty()) place = env::home();
  const bool postgres = place.starts_with("postgres://") || place.starts_with("postgresql://");
  // Neither is repeated: a password may stand in it.
  if (!postgres && has_libpq_key(place)) {
    return make_error(ErrorCode::kInvalid,
                      "the store's address (FLYWHEEL_STORE) is a list of KEY=VALUE as libpq has it: write "
                      "postgres://USER:PASSWORD@HOST/DATABASE, or ./ before the name of a folder");
  }
  if (!postgres && place.find("://") != std::string::npos) {
    return make_error(ErrorCode::kInvalid,
                      "the store's address (FLYWHEEL_STORE) begins with \"{}\": a store is a folder or an "
                      "address that begins with postgres://",
                      place.substr(0, place.find("://") + 3));
  }
  state->home = !files.empty() ? files : postgres ? env::home() : place;
  ASSIGN_OR_RETURN(state->blobs, BlobFolder::open(state->home));
  if (postgres) {
    ASSIGN_OR_RETURN(state->db, open_postgres(place));
  } else {
    ASSIGN_OR_RETURN(state->db, open_sqlite(place + "/flywheel.db"));
  }
  RETURN_IF_ERROR(migrate(*state->db));
  state->owner = user_name();
  state->host = host_name();
  return Store(std::move(state));
}

const std::string& Store::home() const {
  return state_->home;
}

Result<Artifact> Store::resolve(const std::string& ref) {
  Database& db = *state_->db;
  return db.transact(Access::kRead, [&] { return find_artifact(db, ref); });
}

Result<std::vector<Artifact>> Store::list_artifacts(const ArtifactFilter& filter) {
  Database& db = *state_->db;
  return db.transact(Access::kRead, [&]() -> Result<std::vector<Artifact>> {
    ASSIGN_OR_RETURN(
        const Rows rows,
        db.execute(std::string(kArtifactColumns) +
                       "WHERE ($1 = '' OR kind = $1) AND ($2 = '' OR name = $2) AND (removed_ms = 0 OR "
                       "$3 = 1) ORDER BY name, version",
                   {filter.kind, filter.name, int64_t{filter.removed ? 1 : 0}}));
    std::vector<Artifact> artifacts;
    for (const Row& row : rows) {
      ASSIGN_OR_RETURN(Artifact artifact, read_artifact(db, row));
      artifacts.push_back(std::move(artifact));
    }
    return artifacts;
  });
}

Result<std::string> Store::path_of(const Artifact& artifact, Verify verify) {
  if (artifact.removed_ms != 0) {
    return make_error(ErrorCode::kNotFound, "the content of {} was removed", artifact.ref());
  }
  if (artifact.files.empty()) {
    return make_error(ErrorCode::kInvalid, "{} is a {} without files here; its place is in its metadata",
                      artifact.ref(), artifact.kind);
  }
  for (const ArtifactFile& file : artifact.files) {
    if (verify == Verify::kNo) break;
    const std::string blob = state_->blobs.path_of(file.sha256);
    if (const auto sound = check_content(blob, file.sha256, file.size_bytes); !sound.ok()) {
      return make_error(sound.error().code, "{} {}: {}; {}", artifact.ref(), file.path, sound.error().message,
                        mend_advice(artifact.ref()));
    }
  }
  ASSIGN_OR_RETURN(std::string folder, view_of(*state_, artifact));
  return artifact.is_file ? folder + "/" + artifact.files[0].path : folder;
}

Result<void> Store::set_alias(const std::string& ref, const std::string& alias) {
  Database& db = *state_->db;
  return db.transact(Access::kWrite, [&]() -> Result<void> {
    ASSIGN_OR_RETURN(const Artifact artifact, find_artifact(db, ref));
    if (artifact.removed_ms != 0) {
      return make_error(ErrorCode::kNotFound, "the content of {} was removed", artifact.ref());
    }
    return move_alias(db, artifact, alias, state_->owner);
  });
}

Result<void> Store::remove_alias(const std::string& name, const std::string& alias) {
  Database& db = *state_->db;
  return db.transact(Access::kWrite, [&]() -> Result<void> {
    ASSIGN_OR_RETURN(
        const Rows gone,
        db.execute("DELETE FROM alias WHERE name = $1 AND alias = $2 RETURNING alias", {name, alias}));
    if (gone.empty()) return make_error(ErrorCode::kNotFound, "{} has no alias {}", name, alias);
    ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
    RETURN_IF_ERROR(
        db.execute("INSERT INTO alias_change (name, alias, version, owner, time_ms) "
                   "VALUES ($1, $2, 0, $3, $4)",
                   {name, alias, state_->owner, now}));
    return {};
  });
}

Result<std::vector<AliasChange>> Store::alias_history(const std::string& name) {
  Database& db = *state_->db;
  return db.transact(Access::kRead, [&]() -> Result<std::vector<AliasChange>> {
    ASSIGN_OR_RETURN(
        const Rows rows,
        db.execute("SELECT alias, version, owner, time_ms FROM alias_change WHERE name = $1 ORDER BY id",
                   {name}));
    std::vector<AliasChange> changes;
    for (const Row& row : rows) changes.push_back({row.text(0), row.integer(1), row.text(2), row.integer(3)});
    return changes;
  });
}

Result<void> Store::remove_artifact(const std::string& ref) {
  Database& db = *state_->db;
  return db.transact(Access::kWrite, [&]() -> Result<void> {
    ASSIGN_OR_RETURN(const Artifact artifact, find_artifact(db, ref));
    if (artifact.removed_ms != 0) return {};
    for (const std::string& alias : artifact.aliases) {
      if (alias == "latest") continue;
      return make_error(ErrorCode::kDenied, "{} is {}@{}; move or remove that alias first", artifact.ref(),
                        artifact.name, alias);
    }
    ASSIGN_OR_RETURN(const int64_t now, db.now_ms());
    RETURN_IF_ERROR(db.execute("DELETE FROM artifact_file WHERE artifact = $1", {artifact.id}));
    RETURN_IF_ERROR(
        db.execute("UPDATE artifact SET removed_ms = $1, once = NULL WHERE id = $2", {now, artifact.id}));
    return {};
  });
}

}  // namespace flywheel::store
