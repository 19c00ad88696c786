// How long a run was at work, over sessions and kills.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "base/file.h"
#include "base/slowness_for_tests.h"
#include "store/database.h"
#include "store/postgres_for_test.h"
#include "store/store.h"

namespace flywheel::store {
namespace {

class RunTime : public ::testing::TestWithParam<Dialect> {
 protected:
  void SetUp() override {
    address_ = folder_ / "home";
    if (GetParam() == Dialect::kSqlite) return;
    if (!PostgresForTest::available()) GTEST_SKIP() << "no PostgreSQL server programs; package postgresql-15";
    address_ = PostgresForTest::shared().new_database();
  }
  std::unique_ptr<Database> database() {
    return GetParam() == Dialect::kSqlite ? open_sqlite(address_ + "/flywheel.db").value()
                                          : open_postgres(address_).value();
  }
  TempFolder folder_;
  std::string address_;
};

TEST_P(RunTime, LeavesOutWhatLiesBetweenEndAndResume) {
  Store store = Store::open(address_, folder_ / "home").value();
  std::string id;
  {
    auto run = store.create_run({.name = "tiny"}).value();
    id = run.id();
    ASSERT_TRUE(run.finish(RunStatus::kStopped).ok());
  }
  // It ran for 4 s, an hour ago; a second session was killed after its heartbeat at 7 s.
  const auto db = database();
  const auto set = [&](const std::string& sql) {
    ASSERT_TRUE(db->transact(Access::kWrite, [&] { return db->execute(sql); }).ok());
  };
  set("UPDATE run SET created_ms = created_ms - 3600000, session_ms = session_ms - 3600000, finished_ms = "
      "created_ms - 3600000 + 4000");
  EXPECT_EQ(store.run_info(id)->active_ms, 4000);
  { const auto again = store.resume_run(id).value(); }
  const int64_t second = store.run_info(id)->active_ms;
  EXPECT_GE(second, 4000);
  EXPECT_LT(second, 4000 + 60'000);
  set("UPDATE run SET status = 'running', finished_ms = 0, heartbeat_ms = session_ms + 7000");
  EXPECT_EQ(store.run_info(id)->active_ms, 11'000);
  { const auto third = store.resume_run(id).value(); }
  EXPECT_GE(store.run_info(id)->active_ms, 11'000);
  EXPECT_LT(store.run_info(id)->active_ms, 11'000 + 60'000);
}

TEST_P(RunTime, OfAKilledRunIsKnownWithinASecondOrTwo) {
  (void)Store::open(address_, folder_ / "home").value();
  const pid_t child = ::fork();
  if (child == 0) {
    Store store = Store::open(address_, folder_ / "home").value();
    const auto run = store.create_run({.name = "killed"}).value();
    for (;;) ::pause();
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(2.5 * kSlowness));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  Store store = Store::open(address_, folder_ / "home").value();
  const RunInfo info = store.list_runs().value().at(0);
  EXPECT_GE(info.active_ms, 1000);
  EXPECT_LE(info.active_ms, 3000 * kSlowness);
}

TEST_P(RunTime, OfARunOfVersion1CountsFromItsBeginning) {
  if (GetParam() == Dialect::kPostgres) GTEST_SKIP() << "the same statements, seen with SQLite";
  std::string id;
  {
    Store store = Store::open(address_, folder_ / "home").value();
    auto run = store.create_run({.name = "old"}).value();
    id = run.id();
    ASSERT_TRUE(run.finish(RunStatus::kFinished).ok());
  }
  {
    const auto db = database();
    ASSERT_TRUE(db->transact(Access::kExclusive, [&]() -> Result<void> {
                    RETURN_IF_ERROR(
                        db->execute_script("ALTER TABLE run DROP COLUMN session_ms; ALTER TABLE run "
                                           "DROP COLUMN earlier_ms"));
                    RETURN_IF_ERROR(db->execute("UPDATE run SET finished_ms = created_ms + 5000"));
                    RETURN_IF_ERROR(db->execute("UPDATE store_version SET version = 1"));
                    return {};
                  }).ok());
  }
  Store store = Store::open(address_, folder_ / "home").value();
  EXPECT_EQ(store.run_info(id)->active_ms, 5000);
}

INSTANTIATE_TEST_SUITE_P(Databases, RunTime, ::testing::Values(Dialect::kSqlite, Dialect::kPostgres),
                         [](const auto& info) {
                           return info.param == Dialect::kSqlite ? "Sqlite" : "Postgres";
                         });

}  // namespace
}  // namespace flywheel::store
