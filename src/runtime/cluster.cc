#include "runtime/cluster.h"

#include <algorithm>

#include "runtime/addresses.h"
#include "runtime/cluster_internal.h"
#include "runtime/hosts_launcher.h"
#include "runtime/modules.h"

namespace flywheel::runtime {

std::vector<int> deal(int workers, int places) {
  std::vector<int> place_of;
  for (int rank = 0; rank < workers; ++rank)
    place_of.push_back(places >= workers ? rank : static_cast<int>(int64_t{rank} * places / workers));
  return place_of;
}

Result<std::string> ask(const std::vector<std::string>& command, const std::string& install,
                        int64_t patience_ms) {
  const Result<RunOutput> done = run_process(command, {.deadline = Deadline::after_ms(patience_ms)});
  if (!done.ok() && done.error().code == ErrorCode::kNotFound) {
    return make_error(ErrorCode::kNotFound, "there is no {} here: {}", command[0], install);
  }
  if (!done.ok()) return done.error();
  if (done->exit_code == 0) return done->stdout_text;
  std::string why = done->stderr_text.empty() ? done->stdout_text : done->stderr_text;
  while (why.ends_with('\n')) why.pop_back();
  return make_error(ErrorCode::kUnavailable, "{} ended with {}: {}", fmt::join(command, " "), done->exit_code,
                    why);
}

Result<std::string> own_address(const std::string& wanted, const std::string& other) {
  if (wanted.empty()) return address_facing(other);
  ASSIGN_OR_RETURN(const std::string address,
                   is_loopback(other) ? resolve_address(wanted) : resolve_for_others(wanted));
  RETURN_IF_ERROR(check_can_listen(address));
  if (!is_loopback(other)) RETURN_IF_ERROR(check_loopback({{wanted, {}, address}, {other, {}, other}}));
  return address;
}

Result<void> check_loopback(const std::vector<Host>& hosts) {
  const auto near = std::ranges::find_if(hosts, is_loopback, &Host::address);
  const auto far = std::ranges::find_if_not(hosts, is_loopback, &Host::address);
  if (near == hosts.end() || far == hosts.end()) return {};
  return make_error(
      ErrorCode::kInvalid,
      "host {} is {} here, which is loopback: {} cannot reach it there; name it as the others do", near->name,
      near->address, far->name);
}

namespace {

// What ~/.ssh/config and /etc/hosts make of a name.
Result<std::string> address_by_ssh(const std::string& host, const SshOptions& options) {
  std::vector<std::string> command = {"ssh", "-G"};
  command.insert(command.end(), options.options.begin(), options.options.end());
  command.push_back(host);
  ASSIGN_OR_RETURN(const std::string text, ask(command, "install openssh-client"));
  for (const std::string& line : lines_of(text)) {
    if (!line.starts_with("hostname ")) continue;
    return options.hosts.size() == 1 ? resolve_address(line.substr(9)) : resolve_for_others(line.substr(9));
  }
  return make_error(ErrorCode::kUnavailable, "ssh -G {} names no host", host);
}

}  // namespace

std::string shell_quoted(const std::string& word) {
  const bool plain = !word.empty() && std::ranges::all_of(word, [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           std::string_view("/._-+").find(c) != std::string_view::npos;
  });
  if (plain) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if (end > at) lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

Result<Cluster> ssh_cluster(const SshOptions& options) {
  if (options.hosts.empty()) return make_error(ErrorCode::kInvalid, "no hosts are named");
  std::vector<Host> hosts;
  for (const std::string& name : options.hosts) {
    if (name.empty() || name[0] == '-')
      return make_error(ErrorCode::kInvalid, "\"{}\" is no host's name", name);
    if (std::ranges::find(hosts, name, &Host::name) != hosts.end())
      return make_error(ErrorCode::kInvalid, "host {} is there twice", name);
    Host host{.name = name};
    ASSIGN_OR_RETURN(host.address, address_by_ssh(name, options));
    // It must never ask for a password, and a connection that broke must end it.
    host.prefix = {"ssh",
                   "-o",
                   "BatchMode=yes",
                   "-o",
                   "ConnectTimeout=10",
                   "-o",
                   "ServerAliveInterval=5",
                   "-o",
                   "ServerAliveCountMax=3"};
    host.prefix.insert(host.prefix.end(), options.options.begin(), options.options.end());
    host.prefix.push_back(name);
    hosts.push_back(std::move(host));
  }
  RETURN_IF_ERROR(check_loopback(hosts));
  Cluster cluster;
  ASSIGN_OR_RETURN(cluster.address, own_address(options.address, hosts[0].address));
  for (const int place : deal(options.workers, static_cast<int>(hosts.size())))
    cluster.hosts.push_back(hosts[static_cast<size_t>(place)]);
  cluster.launcher = [hosts](LocalLauncherOptions local) {
    if (local.command[0] == "/proc/self/exe") local.command[0] = this_program();
    for (std::string& word : local.command) word = shell_quoted(word);
    return make_hosts_launcher({.local = local, .hosts = hosts, .usable = nullptr});
  };
  return cluster;
}

}  // namespace flywheel::runtime
