// One SQL interface over SQLite and PostgreSQL, as small as the store needs.
//
// Statements are written once, in the SQL that both understand: parameters are $1, $2, ...; upserts are
// ON CONFLICT; new keys come back by RETURNING. What differs (names of types) is in schema.cc.
//
//   Result<int64_t> version = db.transact(Access::kWrite, [&]() -> Result<int64_t> {
//     ASSIGN_OR_RETURN(Rows rows, db.execute("SELECT max(version) FROM artifact WHERE name = $1", {name}));
//     return rows[0].integer(0);
//   });
//
// Access: kWrite transactions of several processes are serial in SQLite and concurrent in PostgreSQL;
// kExclusive excludes every kWrite and kExclusive of all processes, in both; kRead sees one snapshot.
// The body of a transaction may run more than once (deadlock or serialization failure in PostgreSQL): it
// changes nothing outside the database that a second time would spoil.
// Threads: transact() may be called from any thread; one transaction of a Database runs at a time. execute()
// only inside a body.
// Errors: kDeadline (kept busy by others for 60 s), kIo (disk full), kCorrupt, kDenied (read-only), kExists
// (a unique name), kUnavailable (server gone); a malformed statement is a CHECK.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <variant>
#include <vector>

#include "base/result.h"

namespace flywheel::store {

struct Bytes {
  std::string data;
};
using Value = std::variant<std::monostate, int64_t, double, std::string, Bytes>;

class Row {
 public:
  std::vector<Value> values;
  bool is_null(size_t column) const { return values[column].index() == 0; }
  int64_t integer(size_t column) const;           // NULL: 0
  double number(size_t column) const;             // NULL: NaN, which SQLite cannot hold
  const std::string& text(size_t column) const;   // NULL: ""
  const std::string& bytes(size_t column) const;  // NULL: ""
};
using Rows = std::vector<Row>;

enum class Access { kRead, kWrite, kExclusive };
enum class Dialect { kSqlite, kPostgres };

class Database {
 public:
  virtual ~Database() = default;

  template <typename Body>
  auto transact(Access access, Body&& body) -> decltype(body()) {
    const std::lock_guard lock(mutex_);
    for (int attempt = 1;; ++attempt) {
      retryable_ = false;
      if (auto begun = begin(access); !begun.ok()) return begun.error();
      auto result = body();
      if (result.ok()) {
        auto committed = commit();
        if (committed.ok()) return result;
        result = committed.error();
      }
      rollback();
      if (!retryable_ || attempt == 10) return result;
    }
  }

  virtual Result<Rows> execute(const std::string& sql, std::initializer_list<Value> params = {}) = 0;
  // Several statements without parameters or results (migrations).
  virtual Result<void> execute_script(const std::string& sql) = 0;
  // What the database's own checks complain of; empty when sound. Inside a transaction.
  virtual Result<std::vector<std::string>> integrity_problems() = 0;
  // Milliseconds since 1970 on the clock that all users of this database share.
  virtual Result<int64_t> now_ms() = 0;
  virtual Dialect dialect() const = 0;

 protected:
  virtual Result<void> begin(Access access) = 0;
  virtual Result<void> commit() = 0;
  virtual void rollback() = 0;
  bool retryable_ = false;  // the last failure was a conflict with another transaction

 private:
  std::mutex mutex_;
};

Result<std::unique_ptr<Database>> open_sqlite(const std::string& path);
Result<std::unique_ptr<Database>> open_postgres(const std::string& address);

// Brings the tables to the current version (schema.cc). kInvalid when a newer Flywheel made them.
Result<void> migrate(Database& db);

}  // namespace flywheel::store
