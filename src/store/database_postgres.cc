#include <libpq-fe.h>

#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "store/database.h"

namespace flywheel::store {
namespace {

// Held shared by writers and alone by kExclusive; any number that nobody else uses in that database.
constexpr int64_t kAdvisoryLock = 0x666c79776865656cLL;  // "flywheel"

// Type numbers of the server's catalogue (pg_type.dat).
constexpr Oid kBool = 16, kBytea = 17, kInt8 = 20, kInt2 = 21, kInt4 = 23, kFloat8 = 701;

struct ResultDeleter {
  void operator()(PGresult* result) const { PQclear(result); }
};
using PgResult = std::unique_ptr<PGresult, ResultDeleter>;

uint64_t big_endian(const char* p, int size) {
  uint64_t value = 0;
  for (int i = 0; i < size; ++i) value = (value << 8) | static_cast<uint8_t>(p[i]);
  return value;
}

Value read_value(const PGresult* result, int row, int column) {
  if (PQgetisnull(result, row, column) != 0) return std::monostate{};
  const char* p = PQgetvalue(result, row, column);
  const int size = PQgetlength(result, row, column);
  switch (PQftype(result, column)) {
    case kInt8:
      return static_cast<int64_t>(big_endian(p, 8));
    case kInt4:
      return int64_t{static_cast<int32_t>(big_endian(p, 4))};
    case kInt2:
      return int64_t{static_cast<int16_t>(big_endian(p, 2))};
    case kBool:
      return int64_t{*p};
    case kFloat8:
      return std::bit_cast<double>(big_endian(p, 8));
    case kBytea:
      return Bytes{std::string(p, static_cast<size_t>(size))};
    default:
      return std::string(p, static_cast<size_t>(size));
  }
}

struct OptionsDeleter {
  void operator()(PQconninfoOption* options) const { PQconninfoFree(options); }
};

// What libpq says of an address that it cannot read repeats parts of it, which may be parts of the password:
// such addresses do not reach it. It ends the user and password at the first @ or / that it meets.
Result<void> check_address(const std::string& address) {
  const auto wrong = [](const std::string& what) {
    return make_error(
        ErrorCode::kInvalid,
        "the store's address (FLYWHEEL_STORE): {}; write "
        "postgres://USER:PASSWORD@HOST:PORT/DATABASE with %25 for %, %40 for @, %2F for /, %3A for "
        ": and %3F for ? in the user, the password and behind the host",
        what);
  };
  const std::string rest = address.substr(address.find("://") + 3);
  if (const size_t at = rest.rfind('@'); at != std::string::npos && rest.find_first_of("@/?") != at)
    return wrong("an @, / or ? in it is not percent-encoded");
  const std::unique_ptr<PQconninfoOption, OptionsDeleter> options(PQconninfoParse(address.c_str(), nullptr));
  if (options == nullptr)
    return wrong(
        "libpq cannot read it (a % that is not percent-encoded, a [ without ], a parameter that it does not "
        "know)");
  for (const PQconninfoOption* one = options.get(); one->keyword != nullptr; ++one) {
    const std::string value = one->val == nullptr ? "" : one->val;
    if (std::string_view(one->keyword) == "port" &&
        value.find_first_not_of("0123456789,") != std::string::npos)
      return wrong("what stands behind the host's : is no port");
  }
  return {};
}

class PostgresDatabase final : public Database {
 public:
  explicit PostgresDatabase(const std::string& address) : address_(address) {}
  ~PostgresDatabase() override { PQfinish(connection_); }

  Result<void> open() {
    // What the address says wins over these (later in the list wins, and dbname is expanded in place).
    const char* keys[] = {"connect_timeout", "tcp_user_timeout", "application_name",
                          "client_encoding", "dbname",           nullptr};
    const char* values[] = {"10", "30000", "flywheel", "UTF8", address_.c_str(), nullptr};
    connection_ = PQconnectdbParams(keys, values, 1);
    return set_up();
  }

  Result<Rows> execute(const std::string& sql, std::initializer_list<Value> params) override {
    std::vector<std::string> texts;
    texts.reserve(params.size());
    std::vector<const char*> values;
    std::vector<int> lengths, formats;
    for (const Value& value : params) {
      const bool bytes = std::holds_alternative<Bytes>(value);
      if (const auto* number = std::get_if<int64_t>(&value))
        texts.push_back(std::to_string(*number));
      else if (const auto* real = std::get_if<double>(&value))
        texts.push_back(fmt::format("{}", *real));
      else if (const auto* text = std::get_if<std::string>(&value))
        texts.push_back(*text);
      else if (bytes)
        texts.push_back(std::get<Bytes>(value).data);
      else
        texts.emplace_back();
      if (!bytes && texts.back().find('\0') != std::string::npos) {
        return make_error(ErrorCode::kInvalid, "a text with a zero byte cannot be stored");
      }
      values.push_back(value.index() == 0 ? nullptr : texts.back().data());
      lengths.push_back(static_cast<int>(texts.back().size()));
      formats.push_back(bytes ? 1 : 0);
    }
    const PgResult result(PQexecParams(connection_, sql.c_str(), static_cast<int>(values.size()), nullptr,
                                       values.data(), lengths.data(), formats.data(), 1));
    const ExecStatusType status = PQresultStatus(result.get());
    if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK) return failure(result.get(), sql);
    Rows rows(static_cast<size_t>(PQntuples(result.get())));
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int c = 0; c < PQnfields(result.get()); ++c) {
        rows[r].values.push_back(read_value(result.get(), static_cast<int>(r), c));
      }
    }
    return rows;
  }

  Result<void> execute_script(const std::string& sql) override {
    const PgResult result(PQexec(connection_, sql.c_str()));
    const ExecStatusType status = PQresultStatus(result.get());
    if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK) return failure(result.get(), sql);
    return {};
  }

  // The server checks its own pages and keys as it reads and writes.
  Result<std::vector<std::string>> integrity_problems() override { return std::vector<std::string>(); }

  Result<int64_t> now_ms() override {
    ASSIGN_OR_RETURN(const Rows rows,
                     execute("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)", {}));
    return rows[0].integer(0);
  }

  Dialect dialect() const override { return Dialect::kPostgres; }

 protected:
  Result<void> begin(Access access) override {
    // A server that was restarted between two transactions is found again here.
    if (PQstatus(connection_) != CONNECTION_OK) RETURN_IF_ERROR(reconnect());
    auto begun = begin_once(access);
    if (begun.ok() || PQstatus(connection_) == CONNECTION_OK) return begun;
    RETURN_IF_ERROR(reconnect());
    return begin_once(access);
  }
  Result<void> commit() override { return execute_script("COMMIT"); }
  void rollback() override {
    if (PQstatus(connection_) == CONNECTION_OK && PQtransactionStatus(connection_) != PQTRANS_IDLE) {
      const PgResult ignored(PQexec(connection_, "ROLLBACK"));
    }
  }

 private:
  Result<void> begin_once(Access access) {
    if (access == Access::kRead) return execute_script("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
    RETURN_IF_ERROR(execute_script("BEGIN"));
    auto locked = execute_script(fmt::format("SELECT pg_advisory_xact_lock{}({})",
                                             access == Access::kWrite ? "_shared" : "", kAdvisoryLock));
    if (!locked.ok()) rollback();
    return locked;
  }

  Result<void> reconnect() {
    LOG_WARN("store: connection to PostgreSQL lost; connecting again");
    PQreset(connection_);
    return set_up();
  }

  Result<void> set_up() {
    if (PQstatus(connection_) != CONNECTION_OK) {
      return make_error(ErrorCode::kUnavailable, "PostgreSQL does not answer: {}", last_words());
    }
    PQsetNoticeProcessor(
        connection_, [](void*, const char* text) { LOG_DEBUG("postgres: {}", text); }, nullptr);
    // The tables have a schema of their own; a first user makes it, and two first users may meet.
    auto made = execute_script("CREATE SCHEMA IF NOT EXISTS flywheel");
    if (!made.ok() && made.error().code != ErrorCode::kExists) return made;
    return execute_script(
        "SET search_path = flywheel; SET lock_timeout = '60s'; SET statement_timeout = '300s'; "
        "SET idle_in_transaction_session_timeout = '300s'");
  }

  std::string last_words() const {
    std::string text = PQerrorMessage(connection_);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
  }

  Error failure(const PGresult* result, const std::string& sql) {
    const char* field = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const std::string state = field == nullptr ? "" : field;
    const std::string what = last_words();
    const bool wrong_statement =
        state.starts_with("42") && state != "42501" && state != "42P06" && state != "42P07";
    CHECK(!wrong_statement, "{} in {}", what, sql);
    if (state == "40001" || state == "40P01") {  // serialization failure, deadlock
      retryable_ = true;
      return make_error(ErrorCode::kAborted, "PostgreSQL: {}", what);
    }
    if (state == "42501") return make_error(ErrorCode::kDenied, "PostgreSQL: {}", what);
    if (state == "55P03" || state == "57014") return make_error(ErrorCode::kDeadline, "PostgreSQL: {}", what);
    if (state.starts_with("23") || state.starts_with("42P"))
      return make_error(ErrorCode::kExists, "PostgreSQL: {}", what);
    if (state.starts_with("22")) return make_error(ErrorCode::kInvalid, "PostgreSQL: {}", what);
    if (state.starts_with("53") || state.starts_with("58")) {
      return make_error(ErrorCode::kIo, "PostgreSQL: {}; nothing was changed", what);
    }
    if (state.starts_with("XX")) return make_error(ErrorCode::kCorrupt, "PostgreSQL: {}", what);
    return make_error(ErrorCode::kUnavailable, "PostgreSQL: {}", what);
  }

  std::string address_;
  PGconn* connection_ = nullptr;
};

}  // namespace

Result<std::unique_ptr<Database>> open_postgres(const std::string& address) {
  RETURN_IF_ERROR(check_address(address));
  auto database = std::make_unique<PostgresDatabase>(address);
  RETURN_IF_ERROR(database->open());
  return std::unique_ptr<Database>(std::move(database));
}

}  // namespace flywheel::store
