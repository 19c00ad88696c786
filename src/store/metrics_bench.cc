// Metric points a second, from log_metric to the database's commit, beside one SQLite row a point in one
// transaction (the plain way to keep them, as the peer).
#include <cstdio>

#include "base/deadline.h"
#include "base/file.h"
#include "base/philox.h"
#include "store/database.h"
#include "store/postgres_for_test.h"
#include "store/store.h"

using namespace flywheel;
using namespace flywheel::store;

namespace {

constexpr int64_t kSteps = 200'000;
constexpr int kSeries = 10;

double ours(const std::string& address, const std::string& home) {
  Store store = Store::open(address, home).value();
  Run run = store.create_run({}).value();
  std::vector<std::string> names;
  for (int i = 0; i < kSeries; ++i) names.push_back("series_" + std::to_string(i));
  const Stopwatch clock;
  for (int64_t step = 0; step < kSteps; ++step) {
    for (const std::string& name : names) run.log_metric(name, step, static_cast<double>(step) * 0.5);
  }
  run.finish(RunStatus::kFinished).value();
  return static_cast<double>(kSteps) * kSeries / clock.seconds();
}

double rows(const std::string& path) {
  auto db = open_sqlite(path).value();
  db->transact(Access::kWrite, [&] {
      return db->execute_script(
          "CREATE TABLE point (run TEXT, name TEXT, step BIGINT, time_ms BIGINT, value REAL)");
    }).value();
  const Stopwatch clock;
  db->transact(Access::kWrite, [&]() -> Result<void> {
      for (int64_t i = 0; i < kSteps; ++i) {
        RETURN_IF_ERROR(
            db->execute("INSERT INTO point VALUES ($1, $2, $3, $4, $5)",
                        {std::string("run-1"), std::string("series"), i, i, static_cast<double>(i)}));
      }
      return {};
    }).value();
  return static_cast<double>(kSteps) / clock.seconds();
}

}  // namespace

int main() {
  TempFolder folder;
  const double sqlite = ours(folder / "a", folder / "a");
  const double plain = rows(folder / "plain.db");
  double postgres = 0;
  if (PostgresForTest::available()) postgres = ours(PostgresForTest::shared().new_database(), folder / "b");
  std::printf("metric points a second\n  SQLite      %12.0f\n  PostgreSQL  %12.0f\n  a row each  %12.0f\n",
              sqlite, postgres, plain);
  std::printf("{\"ours\": %.0f, \"peer\": %.0f, \"ratio\": %.2f, \"postgres\": %.0f}\n", sqlite, plain,
              sqlite / plain, postgres);
  return 0;
}
