// A PostgreSQL server of our own for tests: in a temporary folder, on a unix socket, gone with the process.
//
//   if (!PostgresForTest::available()) GTEST_SKIP() << "...";
//   std::string address = PostgresForTest::shared().new_database();   // postgres:///test3?host=/tmp/...
//
// The server refuses to run as root: then it runs as the user postgres, which Debian's package makes.
#pragma once

#include <libpq-fe.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/deadline.h"
#include "base/file.h"
#include "base/process.h"

namespace flywheel::store {

class PostgresForTest {
 public:
  static std::string programs() {
    for (const char* version : {"15", "16", "17", "14"}) {
      const std::string folder = std::string("/usr/lib/postgresql/") + version + "/bin";
      if (path_exists(folder + "/initdb")) return folder;
    }
    return "";
  }
  static bool available() { return !programs().empty(); }

  // Started at the first call; stopped when the process ends, however it ends.
  static PostgresForTest& shared() {
    static PostgresForTest server;
    return server;
  }

  std::string new_database() {
    const std::string name = "test" + std::to_string(++databases_);
    PGconn* connection = PQconnectdb(address_of("postgres").c_str());
    PGresult* result = PQexec(connection, ("CREATE DATABASE " + name).c_str());
    CHECK(PQresultStatus(result) == PGRES_COMMAND_OK, "{}", PQerrorMessage(connection));
    PQclear(result);
    PQfinish(connection);
    return address_of(name);
  }

  void restart() {
    stop();
    start();
  }

 private:
  PostgresForTest() {
    namespace fs = std::filesystem;
    fs::permissions(folder_.path(), fs::perms::all);
    const auto made = run_process(as_user({programs() + "/initdb", "-D", folder_ / "data", "-U", "flywheel",
                                           "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"}),
                                  {.process = {.folder = "/"}});
    CHECK(made.ok() && made->exit_code == 0, "initdb: {}",
          made.ok() ? made->stderr_text : made.error().message);
    start();
  }
  ~PostgresForTest() { stop(); }

  void start() {
    server_ = Process::start(as_user({programs() + "/postgres", "-D", folder_ / "data", "-k", folder_.path(),
                                      "-c", "listen_addresses=", "-c", "fsync=off"}),
                             {.folder = "/", .output_file = folder_ / "log"})
                  .value();
    for (const Deadline deadline = Deadline::after_ms(20'000);;) {
      if (PQping(address_of("postgres").c_str()) == PQPING_OK) return;
      CHECK(!deadline.expired(), "postgres: {}", read_file(folder_ / "log").value_or(""));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  void stop() {
    server_.signal(SIGINT);  // fast shutdown
    CHECK(server_.wait(Deadline::after_ms(20'000)).ok(), "postgres does not stop");
  }

  std::string address_of(const std::string& database) const {
    return "postgres:///" + database + "?user=flywheel&host=" + folder_.path();
  }

  // As the user postgres where we are root; changing the user forgets the signal at the parent's death.
  static std::vector<std::string> as_user(std::vector<std::string> command) {
    if (::geteuid() == 0) {
      command.insert(command.begin(), {"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
                                       "--pdeathsig=INT", "--"});
    }
    return command;
  }

  TempFolder folder_;
  Process server_;
  int databases_ = 0;
};

}  // namespace flywheel::store
