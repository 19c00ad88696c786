// A store in a folder of its own, over SQLite or over a PostgreSQL server of our own: what tests of the whole
// interface are written over, so that each runs on both.
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "store/database.h"
#include "store/postgres_for_test.h"
#include "store/store.h"

namespace flywheel::store {

class StoreForTest : public ::testing::TestWithParam<Dialect> {
 protected:
  void SetUp() override {
    if (GetParam() == Dialect::kPostgres) {
      if (!PostgresForTest::available())
        GTEST_SKIP() << "no PostgreSQL server programs; package postgresql-15";
      address_ = PostgresForTest::shared().new_database();
    } else {
      address_ = folder_ / "home";
    }
    store_.emplace(open());
  }

  Store open() { return Store::open(address_, folder_ / "home").value(); }
  Store& store() { return *store_; }

  std::string write(const std::string& name, const std::string& bytes) {
    write_file(folder_ / name, bytes).value();
    return folder_ / name;
  }

  Artifact put(const std::string& name, const std::string& bytes, const std::vector<std::string>& inputs = {},
               const std::string& run = "") {
    return store()
        .put_artifact(
            {.kind = "model", .name = name, .contents = {{"weights", bytes}}, .inputs = inputs, .run = run})
        .value();
  }

  TempFolder folder_;
  std::string address_;
  std::optional<Store> store_;
};

#define FLYWHEEL_TEST_ON_BOTH_DATABASES(Suite)                                                     \
  INSTANTIATE_TEST_SUITE_P(                                                                        \
      Both, Suite, ::testing::Values(Dialect::kSqlite, Dialect::kPostgres), [](const auto& info) { \
        return info.param == Dialect::kSqlite ? std::string("Sqlite") : std::string("Postgres");   \
      })

}  // namespace flywheel::store
