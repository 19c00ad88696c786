// Slurm (https://slurm.schedmd.com, tried with 22.05): every worker is a step of one task in a job that is
// there already, `srun --jobid=ID --overlap`, so that a new step on any node of the job can replace it. Steps
// of one job share its resources (--overlap); a node that fails does not end the job (--no-kill).
#include <charconv>
#include <numeric>
#include <sstream>

#include "base/env.h"
#include "base/log.h"
#include "runtime/addresses.h"
#include "runtime/cluster.h"
#include "runtime/cluster_internal.h"
#include "runtime/hosts_launcher.h"
#include "runtime/modules.h"

namespace flywheel::runtime {
namespace {

constexpr int64_t kHurryMs = 1200;
constexpr double kHoldsSeconds = 2;
constexpr const char* kInstall = "install Slurm's programs (slurm-client), or run where they are";

// Names of the nodes that the job has now: a failed one has left it.
Result<std::vector<std::string>> nodes_of(const std::string& job, int64_t patience_ms) {
  ASSIGN_OR_RETURN(const std::string list,
                   ask({"squeue", "--noheader", "--jobs=" + job, "--format=%A %N"}, kInstall, patience_ms));
  const std::string nodes = nodes_in(list, job);
  if (nodes.empty())
    return make_error(ErrorCode::kUnavailable, "job {} has no nodes: it is not running", job);
  ASSIGN_OR_RETURN(const std::string names,
                   ask({"scontrol", "show", "hostnames", nodes}, kInstall, patience_ms));
  return lines_of(names);
}

// The same in the middle of a run, where workers wait for the controller meanwhile: it must not take longer
// than their lease, and holds for a moment.
class NodesNow {
 public:
  std::optional<std::vector<std::string>> of(const std::string& job) {
    if (asked_ && asked_->seconds() < kHoldsSeconds) return names_;
    auto now = nodes_of(job, kHurryMs);
    if (!now.ok()) LOG_WARN("Slurm does not say which nodes job {} has: {}", job, now.error().message);
    names_ = now.ok() ? std::optional(std::move(now).value()) : std::nullopt;
    asked_.emplace();
    return names_;
  }

 private:
  std::optional<Stopwatch> asked_;
  std::optional<std::vector<std::string>> names_;
};

// The value of NAME=value in a line of scontrol.
std::string value_of(const std::string& line, const std::string& name) {
  const std::string key = name + "=";
  size_t at = line.starts_with(key) ? 0 : line.find(" " + key);
  if (at == std::string::npos) return "";
  at = line.find('=', at) + 1;
  return line.substr(at, line.find(' ', at) - at);
}

Result<std::string> address_of(const std::string& node, size_t nodes) {
  ASSIGN_OR_RETURN(const std::string text, ask({"scontrol", "--oneliner", "show", "node", node}, kInstall));
  const std::string address = value_of(text, "NodeAddr");
  const std::string& name = address.empty() ? node : address;
  Result<std::string> found = nodes == 1 ? resolve_address(name) : resolve_for_others(name);
  if (!found.ok()) return make_error(found.error().code, "Slurm node {}: {}", node, found.error().message);
  return found;
}

// Of the job's environment, one for each of its first nodes; empty where it does not say or does not fit.
std::vector<int> counts(const char* variable, size_t nodes) {
  const Result<std::vector<int>> all = parse_slurm_counts(env::get(variable));
  return all.ok() && all->size() == nodes ? *all : std::vector<int>();
}

}  // namespace

std::string nodes_in(const std::string& list, const std::string& job) {
  for (const std::string& line : lines_of(list)) {
    std::istringstream words(line);
    std::string id, nodes;
    if (words >> id >> nodes && id == job && nodes != "(null)") return nodes;
  }
  return "";
}

Result<std::vector<int>> parse_slurm_counts(const std::string& text) {
  const auto wrong = [&] { return make_error(ErrorCode::kInvalid, "\"{}\" is not like 2(x3),1", text); };
  std::vector<int> all;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto number = [&](int most) {
    int value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc() || value < 1 || value > most) return 0;
    at = next;
    return value;
  };
  const auto skip = [&](std::string_view what) {
    if (!std::string_view(at, end).starts_with(what)) return false;
    at += what.size();
    return true;
  };
  do {
    const int value = number(1 << 20);
    int times = 1;
    if (value > 0 && skip("(x")) {
      times = number(1 << 20);
      if (!skip(")")) times = 0;
    }
    if (value == 0 || times == 0) return wrong();
    all.insert(all.end(), static_cast<size_t>(times), value);
  } while (skip(","));
  if (at != end) return wrong();
  return all;
}

Result<Cluster> slurm_cluster(const SlurmOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, nodes_of(options.job, kAskMs));
  const size_t nodes = names.size();
  // As Slurm laid out the tasks, if these are our workers; else in blocks.
  const std::vector<int> tasks = counts("SLURM_TASKS_PER_NODE", nodes),
                         cpus = counts("SLURM_JOB_CPUS_PER_NODE", nodes);
  std::vector<int> node_of;
  if (std::accumulate(tasks.begin(), tasks.end(), 0) == options.workers) {
    for (size_t node = 0; node < nodes; ++node)
      node_of.insert(node_of.end(), static_cast<size_t>(tasks[node]), static_cast<int>(node));
  } else {
    node_of = deal(options.workers, static_cast<int>(nodes));
  }
  Cluster cluster;
  std::vector<Host> hosts;
  for (size_t node = 0; node < nodes; ++node) {
    const auto workers = std::max<int64_t>(1, std::ranges::count(node_of, static_cast<int>(node)));
    const int64_t cores = cpus.empty() ? 1 : std::max<int64_t>(1, cpus[node] / workers);
    Host host{.name = names[node]};
    ASSIGN_OR_RETURN(host.address, address_of(names[node], nodes));
    host.prefix = {"srun",
                   "--jobid=" + options.job,
                   "--overlap",
                   "--no-kill",
                   "--nodes=1",
                   "--ntasks=1",
                   "--mem=0",
                   "--nodelist=" + names[node],
                   "--mpi=none",
                   fmt::format("--cpus-per-task={}", cores),
                   "--cpu-bind=none",
                   "--immediate=30"};
    hosts.push_back(std::move(host));
    if (std::ranges::count(node_of, static_cast<int>(node)) > 0 && !cpus.empty())
      cluster.cores = cluster.cores == 0 ? cores : std::min(cluster.cores, cores);
  }
  RETURN_IF_ERROR(check_loopback(hosts));
  ASSIGN_OR_RETURN(cluster.address, own_address(options.address, hosts[0].address));
  for (const int node : node_of) cluster.hosts.push_back(hosts[static_cast<size_t>(node)]);
  cluster.launcher = [hosts, job = options.job](LocalLauncherOptions local) {
    local.end_signal = SIGTERM;  // srun then ends its step, stopped or not
    const auto usable = [job, answer = NodesNow()]() mutable { return answer.of(job); };
    return make_hosts_launcher({.local = local, .hosts = hosts, .usable = usable});
  };
  return cluster;
}

Result<std::vector<std::string>> salloc_command(const std::vector<std::string>& options, int workers,
                                                int64_t threads, const std::string& name,
                                                const std::vector<std::string>& command) {
  const Result<std::string> version = ask({"salloc", "--version"}, kInstall);
  if (!version.ok()) return version.error();
  std::vector<std::string> words = {"salloc", "--no-kill", "--job-name=" + name,
                                    fmt::format("--ntasks={}", workers)};
  if (threads > 0) words.push_back(fmt::format("--cpus-per-task={}", threads));
  words.insert(words.end(), options.begin(), options.end());
  words.insert(words.end(), command.begin(), command.end());
  std::string& program = words[words.size() - command.size()];
  if (program == "/proc/self/exe") program = this_program();
  return words;
}

}  // namespace flywheel::runtime
