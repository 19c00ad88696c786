// "Hosts" for tests: network namespaces, each joined by a veth pair to a bridge in a namespace of its own, so
// that a host's cable can be cut. Nothing outside of them is reached or changed.
//
//   Network network({"a", "b"});
//   if (const std::string why = network.up(); !why.empty()) skip(why);
//   run_process(network.inside("a", {"ping", network.address("b")}));
//   network.link("b", "down");                        // its cable is cut
//   network.kill_all("b");                            // SIGKILL to every process of it
#pragma once

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <sstream>
#include <string>
#include <vector>

#include "base/process.h"

namespace flywheel {

class Network {
 public:
  explicit Network(std::vector<std::string> hosts)
      : hosts_(std::move(hosts)), prefix_("fw" + std::to_string(::getpid()) + "-") {}
  ~Network() {
    for (const std::string& host : hosts_) (void)ip({"netns", "del", prefix_ + host});
    (void)ip({"netns", "del", prefix_ + "wire"});
  }
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  // Why there can be none here; empty: it is there.
  std::string up() {
    if (::geteuid() != 0) return "network namespaces need root";
    const std::string wire = prefix_ + "wire";
    std::string error = ip({"netns", "add", wire});
    if (!error.empty()) return "network namespaces cannot be made: " + error;
    error = ip({"-n", wire, "link"});
    if (!error.empty()) return "network namespaces cannot be entered (a chroot?): " + error;
    std::vector<std::vector<std::string>> steps = {{"-n", wire, "link", "add", "br0", "type", "bridge"},
                                                   {"-n", wire, "link", "set", "br0", "up"}};
    for (const std::string& host : hosts_) {
      const std::string space = prefix_ + host, cable = "v-" + host;
      steps.insert(steps.end(), {{"netns", "add", space},
                                 {"-n", space, "link", "set", "lo", "up"},
                                 {"-n", wire, "link", "add", cable, "type", "veth", "peer", "name", "eth0",
                                  "netns", space},
                                 {"-n", wire, "link", "set", cable, "master", "br0", "up"},
                                 {"-n", space, "addr", "add", address(host) + "/24", "dev", "eth0"},
                                 {"-n", space, "link", "set", "eth0", "up"}});
    }
    for (const auto& step : steps) {
      error = ip(step);
      if (!error.empty()) return "hosts cannot be joined: " + error;
    }
    return "";
  }

  std::string address(const std::string& host) const {
    return "10.77.8." + std::to_string(1 + (std::ranges::find(hosts_, host) - hosts_.begin()));
  }
  // Words in front of a command that runs on this host.
  std::vector<std::string> prefix(const std::string& host) const {
    return {"nsenter", "--net=/run/netns/" + prefix_ + host};
  }
  std::vector<std::string> inside(const std::string& host, const std::vector<std::string>& command) const {
    std::vector<std::string> words = prefix(host);
    words.insert(words.end(), command.begin(), command.end());
    return words;
  }

  bool link(const std::string& host, const char* state) const {
    return ip({"-n", prefix_ + "wire", "link", "set", "v-" + host, state}).empty();
  }
  std::vector<pid_t> processes(const std::string& host) const {
    const auto listed = run_process({"ip", "netns", "pids", prefix_ + host});
    std::istringstream text(listed.ok() ? listed->stdout_text : "");
    std::vector<pid_t> pids;
    for (pid_t pid = 0; text >> pid;) pids.push_back(pid);
    return pids;
  }
  // How many there were.
  size_t kill_all(const std::string& host) const {
    const std::vector<pid_t> pids = processes(host);
    for (const pid_t pid : pids) ::kill(pid, SIGKILL);
    return pids.size();
  }

 private:
  // What went wrong; empty: nothing.
  static std::string ip(std::vector<std::string> words) {
    words.insert(words.begin(), "ip");
    const auto done = run_process(words, {.deadline = Deadline::after_ms(10'000)});
    if (!done.ok()) return done.error().message;
    return done->exit_code == 0 ? "" : done->stderr_text + " ";
  }

  const std::vector<std::string> hosts_;
  const std::string prefix_;
};

}  // namespace flywheel
