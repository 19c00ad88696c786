// The tables, as a list of migrations: entry n brings a database from version n to n + 1. An entry that was
// released is never edited; a change is a new entry. docs/formats/store.md describes the result.
#include <array>

#include "store/database.h"

namespace flywheel::store {
namespace {

// {SERIAL} and {BYTES} are the two names of types that differ. Every time is in milliseconds since 1970.
constexpr std::array kMigrations = {
    R"sql(
CREATE TABLE counter (            -- the last number given out: versions of a name, runs of a name
  scope TEXT NOT NULL, name TEXT NOT NULL, value BIGINT NOT NULL, PRIMARY KEY (scope, name));

CREATE TABLE run (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, owner TEXT NOT NULL, host TEXT NOT NULL,
  pid BIGINT NOT NULL, status TEXT NOT NULL, note TEXT NOT NULL, config TEXT NOT NULL,
  session BIGINT NOT NULL,        -- 1 when created, one more at each resume
  created_ms BIGINT NOT NULL, finished_ms BIGINT NOT NULL, heartbeat_ms BIGINT NOT NULL);
CREATE INDEX run_created ON run (created_ms);
CREATE TABLE run_param (
  run TEXT NOT NULL REFERENCES run, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (run, key));
CREATE TABLE run_tag (
  run TEXT NOT NULL REFERENCES run, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (run, key));
CREATE TABLE metric (             -- what `runs list` shows without reading points
  run TEXT NOT NULL REFERENCES run, name TEXT NOT NULL, points BIGINT NOT NULL, last_step BIGINT NOT NULL,
  last_value DOUBLE PRECISION, PRIMARY KEY (run, name));
CREATE TABLE metric_chunk (       -- points, packed (metrics.h)
  run TEXT NOT NULL REFERENCES run, name TEXT NOT NULL, session BIGINT NOT NULL, sequence BIGINT NOT NULL,
  data {BYTES} NOT NULL, PRIMARY KEY (run, name, session, sequence));

CREATE TABLE blob (               -- every file under blobs/ has its row before it has its name
  sha256 TEXT PRIMARY KEY, size_bytes BIGINT NOT NULL, created_ms BIGINT NOT NULL);
CREATE TABLE reservation (        -- what a writer is about to refer to; sha256 '' is the writer itself
  id TEXT NOT NULL, sha256 TEXT NOT NULL, expires_ms BIGINT NOT NULL, PRIMARY KEY (id, sha256));
CREATE INDEX reservation_sha256 ON reservation (sha256);

CREATE TABLE artifact (
  id {SERIAL}, kind TEXT NOT NULL, name TEXT NOT NULL, version BIGINT NOT NULL, is_file BIGINT NOT NULL,
  digest TEXT NOT NULL, size_bytes BIGINT NOT NULL, owner TEXT NOT NULL, run TEXT REFERENCES run,
  metadata TEXT NOT NULL, once TEXT UNIQUE, created_ms BIGINT NOT NULL, removed_ms BIGINT NOT NULL,
  UNIQUE (name, version));
CREATE INDEX artifact_run ON artifact (run);
CREATE INDEX artifact_digest ON artifact (digest);
CREATE TABLE artifact_file (
  artifact BIGINT NOT NULL REFERENCES artifact, path TEXT NOT NULL, sha256 TEXT NOT NULL REFERENCES blob,
  size_bytes BIGINT NOT NULL, PRIMARY KEY (artifact, path));
CREATE INDEX artifact_file_sha256 ON artifact_file (sha256);
CREATE TABLE artifact_input (
  artifact BIGINT NOT NULL REFERENCES artifact, input BIGINT NOT NULL REFERENCES artifact,
  PRIMARY KEY (artifact, input));
CREATE INDEX artifact_input_input ON artifact_input (input);
CREATE TABLE run_input (
  run TEXT NOT NULL REFERENCES run, artifact BIGINT NOT NULL REFERENCES artifact, PRIMARY KEY (run, artifact));
CREATE INDEX run_input_artifact ON run_input (artifact);
CREATE TABLE alias (
  name TEXT NOT NULL, alias TEXT NOT NULL, artifact BIGINT NOT NULL REFERENCES artifact,
  PRIMARY KEY (name, alias));
CREATE INDEX alias_artifact ON alias (artifact);
CREATE TABLE alias_change (
  id {SERIAL}, name TEXT NOT NULL, alias TEXT NOT NULL, version BIGINT NOT NULL, owner TEXT NOT NULL,
  time_ms BIGINT NOT NULL);
)sql",
    R"sql(
ALTER TABLE run ADD COLUMN session_ms BIGINT NOT NULL DEFAULT 0;  -- when the present session began
ALTER TABLE run ADD COLUMN earlier_ms BIGINT NOT NULL DEFAULT 0;  -- how long those before it lasted
UPDATE run SET session_ms = created_ms;
)sql"};

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
}

}  // namespace

Result<void> migrate(Database& db) {
  const bool postgres = db.dialect() == Dialect::kPostgres;
  return db.transact(Access::kExclusive, [&]() -> Result<void> {
    RETURN_IF_ERROR(db.execute("CREATE TABLE IF NOT EXISTS store_version (version BIGINT NOT NULL)"));
    ASSIGN_OR_RETURN(const Rows rows, db.execute("SELECT version FROM store_version"));
    const int64_t version = rows.empty() ? 0 : rows[0].integer(0);
    const auto newest = static_cast<int64_t>(kMigrations.size());
    if (version > newest) {
      return make_error(ErrorCode::kInvalid,
                        "the store has version {} and this Flywheel reads up to {}; use a newer Flywheel",
                        version, newest);
    }
    if (version == newest) return {};
    for (int64_t next = version; next < newest; ++next) {
      std::string sql = kMigrations[static_cast<size_t>(next)];
      replace_all(sql, "{SERIAL}", postgres ? "BIGSERIAL PRIMARY KEY" : "INTEGER PRIMARY KEY AUTOINCREMENT");
      replace_all(sql, "{BYTES}", postgres ? "BYTEA" : "BLOB");
      RETURN_IF_ERROR(db.execute_script(sql));
    }
    RETURN_IF_ERROR(db.execute("DELETE FROM store_version"));
    RETURN_IF_ERROR(db.execute("INSERT INTO store_version VALUES ($1)", {newest}));
    return {};
  });
}

}  // namespace flywheel::store
