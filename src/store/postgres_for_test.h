// A PostgreSQL server of our own for tests: in a temporary folder, on a unix socket, gone with the process.
//
//   if (!PostgresForTest::available()) GTEST_SKIP() << "...";
//   std::string address = PostgresForTest::shared().new_database();   // postgres:///test3?host=/tmp/...
//
// The server refuses to run as root: then it runs as the user postgres, which Debian's package makes.
#pragma once

#include <libpq-fe.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/deadline.h"
#include "base/file.h"

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
    const int made = wait_for(spawn({programs() + "/initdb", "-D", folder_ / "data", "-U", "flywheel", "-A",
                                     "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"}));
    CHECK(made == 0, "initdb: {}", read_file(folder_ / "log").value_or(""));
    start();
  }
  ~PostgresForTest() { stop(); }

  void start() {
    server_ = spawn({programs() + "/postgres", "-D", folder_ / "data", "-k", folder_.path(), "-c",
                     "listen_addresses=", "-c", "fsync=off"});
    for (const Deadline deadline = Deadline::after_ms(20'000);;) {
      if (PQping(address_of("postgres").c_str()) == PQPING_OK) return;
      CHECK(!deadline.expired(), "postgres: {}", read_file(folder_ / "log").value_or(""));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  void stop() {
    ::kill(server_, SIGINT);  // fast shutdown
    (void)wait_for(server_);
  }

  std::string address_of(const std::string& database) const {
    return "postgres:///" + database + "?user=flywheel&host=" + folder_.path();
  }

  // As the user postgres where we are root. The child goes when its parent does.
  pid_t spawn(std::vector<std::string> command) {
    if (::geteuid() == 0) {
      command.insert(command.begin(), {"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
                                       "--pdeathsig=INT", "--"});
    }
    std::vector<char*> args;
    for (std::string& word : command) args.push_back(word.data());
    args.push_back(nullptr);
    const std::string log = folder_ / "log";
    const pid_t child = ::fork();
    CHECK(child >= 0, "fork");
    if (child != 0) return child;
    ::prctl(PR_SET_PDEATHSIG, SIGINT);
    if (::freopen(log.c_str(), "a", stdout) != nullptr) ::dup2(1, 2);
    if (::chdir("/") == 0) ::execvp(args[0], args.data());
    ::_exit(127);
  }
  static int wait_for(pid_t child) {
    int status = 0;
    ::waitpid(child, &status, 0);
    return status;
  }

  TempFolder folder_;
  pid_t server_ = -1;
  int databases_ = 0;
};

}  // namespace flywheel::store
