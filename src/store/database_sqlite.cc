#include <sqlite3.h>

#include <chrono>
#include <thread>
#include <unordered_map>

#include "base/check.h"
#include "base/deadline.h"
#include "store/database.h"

namespace flywheel::store {

namespace {

constexpr int64_t kBusyMs = 60'000;

class SqliteDatabase final : public Database {
 public:
  explicit SqliteDatabase(std::string path) : path_(std::move(path)) {}

  ~SqliteDatabase() override {
    for (auto& [sql, statement] : statements_) sqlite3_finalize(statement);
    if (db_ != nullptr) sqlite3_close(db_);
  }

  Result<void> open() {
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    if (sqlite3_open_v2(path_.c_str(), &db_, flags, nullptr) != SQLITE_OK) return failure("open");
    sqlite3_extended_result_codes(db_, 1);
    sqlite3_busy_handler(db_, &SqliteDatabase::on_busy, this);
    // A change of journal mode does not always call the busy handler: two first users may meet here.
    const Deadline deadline = Deadline::after_ms(kBusyMs);
    for (;;) {
      auto set = execute_script("PRAGMA journal_mode = WAL");
      if (set.ok()) break;
      if (set.error().code != ErrorCode::kDeadline || deadline.expired()) return set;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    // FULL: a commit that was reported survives a power cut.
    return execute_script("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON");
  }

  Result<Rows> execute(const std::string& sql, std::initializer_list<Value> params) override {
    sqlite3_stmt*& statement = statements_[sql];
    if (statement == nullptr) {
      const int rc = sqlite3_prepare_v3(db_, sql.c_str(), -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
      CHECK(rc != SQLITE_ERROR, "{} in {}", sqlite3_errmsg(db_), sql);
      if (rc != SQLITE_OK) return failure(sql);
    }
    int64_t number = 0;
    for (const Value& value : params) bind(statement, ++number, value);
    Rows rows;
    int rc = 0;
    while ((rc = sqlite3_step(statement)) == SQLITE_ROW) rows.push_back(read_row(statement));
    if (rc != SQLITE_DONE) {
      Error error = failure(sql);
      sqlite3_reset(statement);
      return error;
    }
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    return rows;
  }

  Result<void> execute_script(const std::string& sql) override {
    if (sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) return failure(sql);
    return {};
  }

  Result<std::vector<std::string>> integrity_problems() override {
    std::vector<std::string> problems;
    ASSIGN_OR_RETURN(const Rows checked, execute("PRAGMA integrity_check", {}));
    for (const Row& row : checked) {
      if (row.text(0) != "ok") problems.push_back(path_ + ": " + row.text(0));
    }
    ASSIGN_OR_RETURN(const Rows dangling, execute("PRAGMA foreign_key_check", {}));
    for (const Row& row : dangling) {
      problems.push_back(fmt::format("{}: a row of {} points to a row of {} that is not there", path_,
                                     row.text(0), row.text(2)));
    }
    return problems;
  }

  Result<int64_t> now_ms() override {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
  }

  Dialect dialect() const override { return Dialect::kSqlite; }

 protected:
  // kWrite takes the write lock at once: a reader that turns writer later could fail half way.
  Result<void> begin(Access access) override {
    return execute_script(access == Access::kRead ? "BEGIN DEFERRED" : "BEGIN IMMEDIATE");
  }
  Result<void> commit() override { return execute_script("COMMIT"); }
  void rollback() override {
    if (sqlite3_get_autocommit(db_) == 0) sqlite3_exec(db_, "ROLLBACK", nullptr, nullptr, nullptr);
  }

 private:
  // Called by SQLite each time it finds the file locked; 0 gives up.
  static int on_busy(void* self, int attempt) {
    auto* database = static_cast<SqliteDatabase*>(self);
    if (attempt == 0) database->busy_until_ = Deadline::after_ms(kBusyMs);
    if (database->busy_until_.expired()) return 0;
    std::this_thread::sleep_for(std::chrono::microseconds(attempt < 10 ? 200 * (attempt + 1) : 5'000));
    return 1;
  }

  static void bind(sqlite3_stmt* statement, int64_t number, const Value& value) {
    const int index = sqlite3_bind_parameter_index(statement, fmt::format("${}", number).c_str());
    CHECK(index > 0, "no parameter ${} in {}", number, sqlite3_sql(statement));
    const auto bind_value = [&](const auto& v) {
      using T = std::decay_t<decltype(v)>;
      if constexpr (std::is_same_v<T, int64_t>) return sqlite3_bind_int64(statement, index, v);
      if constexpr (std::is_same_v<T, double>) return sqlite3_bind_double(statement, index, v);
      if constexpr (std::is_same_v<T, std::string>) {
        return sqlite3_bind_text64(statement, index, v.data(), v.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
      }
      if constexpr (std::is_same_v<T, Bytes>) {
        return sqlite3_bind_blob64(statement, index, v.data.data(), v.data.size(), SQLITE_TRANSIENT);
      }
      return sqlite3_bind_null(statement, index);
    };
    CHECK(std::visit(bind_value, value) == SQLITE_OK, "cannot bind ${} of {}", number,
          sqlite3_sql(statement));
  }

  static Row read_row(sqlite3_stmt* statement) {
    Row row;
    const int columns = sqlite3_column_count(statement);
    for (int i = 0; i < columns; ++i) {
      const auto size = [&] { return static_cast<size_t>(sqlite3_column_bytes(statement, i)); };
      switch (sqlite3_column_type(statement, i)) {
        case SQLITE_INTEGER:
          row.values.emplace_back(int64_t{sqlite3_column_int64(statement, i)});
          break;
        case SQLITE_FLOAT:
          row.values.emplace_back(sqlite3_column_double(statement, i));
          break;
        case SQLITE_TEXT: {
          const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement, i));
          row.values.emplace_back(std::string(text, size()));
          break;
        }
        case SQLITE_BLOB: {
          const auto* data = static_cast<const char*>(sqlite3_column_blob(statement, i));
          row.values.emplace_back(Bytes{data == nullptr ? std::string() : std::string(data, size())});
          break;
        }
        default:
          row.values.emplace_back(std::monostate{});
      }
    }
    return row;
  }

  Error failure(const std::string& doing) const {
    const std::string what = db_ == nullptr ? "out of memory" : sqlite3_errmsg(db_);
    const int code = db_ == nullptr ? SQLITE_NOMEM : sqlite3_errcode(db_);
    switch (code & 0xff) {
      case SQLITE_BUSY:
      case SQLITE_LOCKED:
        return make_error(ErrorCode::kDeadline, "{}: kept busy by other processes for {} s; try again", path_,
                          kBusyMs / 1000);
      case SQLITE_CORRUPT:
      case SQLITE_NOTADB:
        return make_error(ErrorCode::kCorrupt, "{}: {}; restore the file from a backup, or move it away",
                          path_, what);
      case SQLITE_READONLY:
      case SQLITE_PERM:
      case SQLITE_AUTH:
        return make_error(ErrorCode::kDenied, "{}: {}", path_, what);
      case SQLITE_CONSTRAINT:
        return make_error(ErrorCode::kExists, "{}: {}", path_, what);
      case SQLITE_FULL:
      case SQLITE_IOERR:
        return make_error(ErrorCode::kIo, "{}: {}; is the disk full? Nothing was changed", path_, what);
      case SQLITE_CANTOPEN:
        return make_error(ErrorCode::kIo, "{}: {}", path_, what);
      default:
        return make_error(ErrorCode::kIo, "{}: {} ({}, in: {})", path_, what, code, doing.substr(0, 80));
    }
  }

  std::string path_;
  sqlite3* db_ = nullptr;
  std::unordered_map<std::string, sqlite3_stmt*> statements_;
  Deadline busy_until_ = Deadline::never();
};

}  // namespace

Result<std::unique_ptr<Database>> open_sqlite(const std::string& path) {
  auto database = std::make_unique<SqliteDatabase>(path);
  RETURN_IF_ERROR(database->open());
  return std::unique_ptr<Database>(std::move(database));
}

}  // namespace flywheel::store
