// What the system lets this process have: disk, descriptors, locked memory, the loopback network.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/env.h"
#include "base/file.h"
#include "base/progress.h"
#include "doctor/doctor.h"
#include "store/store.h"

namespace flywheel::cli::doctor {
namespace {

constexpr double kLeastDiskBytes = 5e9;
constexpr uint64_t kLeastFiles = 4096;
constexpr int kServePort = 8000;

double free_bytes(const std::string& folder) {
  struct statvfs disk {};
  if (statvfs(folder.c_str(), &disk) != 0) return 0;
  return static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
}

std::string limit_text(rlim_t limit) {
  return limit == RLIM_INFINITY ? "no limit" : human_bytes(static_cast<double>(limit));
}

// A socket of this process on 127.0.0.1; closed with it.
class LoopbackSocket {
 public:
  LoopbackSocket() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {}
  ~LoopbackSocket() {
    if (fd_ >= 0) close(fd_);
  }
  LoopbackSocket(const LoopbackSocket&) = delete;
  LoopbackSocket& operator=(const LoopbackSocket&) = delete;

  // 0 or errno. A listener takes the port (0: any), a client goes to it.
  int listen_on(int port) {
    const int yes = 1;
    setsockopt(fd_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    const sockaddr_in address = on_loopback(port);
    if (bind(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return errno;
    return listen(fd_, 1) == 0 ? 0 : errno;
  }
  int connect_to(int port) {
    const sockaddr_in address = on_loopback(port);
    return connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
  }
  int port() const {
    sockaddr_in address{};
    socklen_t size = sizeof address;
    return getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size) == 0 ? ntohs(address.sin_port) : 0;
  }

 private:
  static sockaddr_in on_loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }
  int fd_;
};

// `home_usable`: false where it was said already that the home is in the way, not what lies in it.
void look_at_store(Report& report, bool home_usable) {
  const bool in_home = env::store().empty();
  if (in_home && !home_usable) return;
  const auto opened = store::Store::open();
  if (opened.ok()) return;
  report.problems.push_back(
      {"the store does not open: " + opened.error().message,
       in_home ? "move flywheel.db away, or choose another folder with --home"
               : "start that server, mend FLYWHEEL_STORE, or unset it to use a file under home"});
}

}  // namespace

void look_at_limits(Report& report) {
  const std::string home = env::home();
  report.json["home"] = home;
  report.json["store"] = env::store().empty() ? home + "/flywheel.db" : "PostgreSQL (FLYWHEEL_STORE)";
  double disk = 0;
  bool usable = false;
  if (auto made = make_folders(home); !made.ok()) {
    report.problems.push_back({made.error().message, "choose another folder with --home or FLYWHEEL_HOME"});
  } else if (access(home.c_str(), W_OK) != 0) {
    report.problems.push_back({home + " cannot be written", "choose another with --home or FLYWHEEL_HOME"});
  } else {
    usable = true;
    disk = free_bytes(home);
    if (disk < kLeastDiskBytes) {
      report.problems.push_back({"only " + human_bytes(disk) + " free under " + home,
                                 "free some, or choose another disk with --home"});
    }
  }
  look_at_store(report, usable);
  report.json["disk_free_bytes"] = disk;
  report.lines.emplace_back("home", fmt::format("{}, {} free", home, human_bytes(disk)));

  rlimit files{}, locked{};
  getrlimit(RLIMIT_NOFILE, &files);
  getrlimit(RLIMIT_MEMLOCK, &locked);
  report.json["open_files"] = files.rlim_cur;
  report.json["open_files_most"] = files.rlim_max;
  report.json["locked_memory_bytes"] =
      locked.rlim_cur == RLIM_INFINITY ? OrderedJson() : OrderedJson(locked.rlim_cur);  // null: no limit
  report.lines.emplace_back(
      "limits", fmt::format("{} open files (up to {}), locked memory {}", files.rlim_cur, files.rlim_max,
                            limit_text(locked.rlim_cur)));
  if (files.rlim_max < kLeastFiles) {
    report.problems.push_back(
        {fmt::format("at most {} open files: about that many streams at once", files.rlim_max),
         "raise it with `ulimit -Hn 65536` (for good: /etc/security/limits.conf)"});
  }
}

void look_at_network(Report& report) {
  LoopbackSocket listener, client;
  int error = listener.listen_on(0);
  if (error == 0) error = client.connect_to(listener.port());
  report.json["loopback"] = error == 0;
  if (error != 0) {
    report.problems.push_back(
        {"programs here cannot reach each other on 127.0.0.1: " + std::string(strerror(error)),
         "ip link set lo up (in a container: give it a network)"});
  }
  LoopbackSocket serve;
  const int taken = serve.listen_on(kServePort);
  report.json["port_8000_free"] = taken == 0;
  report.lines.emplace_back(
      "network", fmt::format("loopback {}, port {} {}", error == 0 ? "works" : "does not work", kServePort,
                             taken == 0 ? "free" : "taken"));
  if (taken != 0 && error == 0) {
    report.advice.push_back(
        {fmt::format("port {} is taken by another program", kServePort), "flywheel serve MODEL --port 8001"});
  }
}

}  // namespace flywheel::cli::doctor
