#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <sstream>

#include "base/env.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/posix.h"
#include "cli.h"
#include "launch.h"
#include "runtime/addresses.h"
#include "runtime/join_point.h"
#include "runtime/kubernetes.h"
#include "runtime/rank_environment.h"
#include "runtime/ray_job.h"
#include "runtime/seat.h"
#include "runtime/seats.h"

namespace flywheel::cli {
namespace {

using runtime::Cluster;
using runtime::Host;
using runtime::JoinPoint;
using runtime::RankEnvironment;

constexpr int64_t kWaitSeconds = 300;

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

std::vector<std::string> names_of(const std::string& list) {
  std::vector<std::string> names;
  std::istringstream stream(list);
  for (std::string name; std::getline(stream, name, ',');) names.push_back(name);
  return names;
}

// --- ranks that somebody else started ---------------------------------------------------------------

// Where they meet: an endpoint with keys from a secret that all were given, or a file in a folder that all
// see.
struct Meeting {
  std::string endpoint, host;  // FLYWHEEL_JOIN: tcp://HOST:PORT
  int port = 0;
  runtime::Keys keys;  // of FLYWHEEL_JOIN_SECRET_FILE
  std::string file;
};

Meeting meeting_of(const RankEnvironment& ranks, const LaunchJob& job) {
  const std::string secret_file = env::get("FLYWHEEL_JOIN_SECRET_FILE");
  Meeting meeting{.endpoint = env::get("FLYWHEEL_JOIN")};
  if (meeting.endpoint.empty() != secret_file.empty()) {
    throw UserError(
        meeting.endpoint.empty() ? "FLYWHEEL_JOIN" : "FLYWHEEL_JOIN_SECRET_FILE", "is not set",
        "FLYWHEEL_JOIN is where rank 0 waits, as tcp://node7:7400, and FLYWHEEL_JOIN_SECRET_FILE a "
        "file with a secret that all ranks have");
  }
  if (meeting.endpoint.empty()) {
    const std::string name = sha256_hex(ranks.source + ranks.job + "\n" + job.config);
    meeting.file = env::home() + "/launch/" + name.substr(0, 16) + ".json";
    return meeting;
  }
  constexpr std::string_view kTcp = "tcp://";
  const size_t colon = meeting.endpoint.rfind(':');
  if (meeting.endpoint.starts_with(kTcp) && colon > kTcp.size()) {
    meeting.host = meeting.endpoint.substr(kTcp.size(), colon - kTcp.size());
    meeting.port = std::atoi(meeting.endpoint.c_str() + colon + 1);
  }
  if (meeting.port <= 0 || meeting.port > 65535)
    throw UserError("FLYWHEEL_JOIN", "\"" + meeting.endpoint + "\" is not like tcp://node7:7400");
  meeting.keys = runtime::keys_from_secret_file(secret_file).value_or_throw("FLYWHEEL_JOIN_SECRET_FILE");
  return meeting;
}

int work_for_rank_0(const RankEnvironment& ranks, const Meeting& meeting, int64_t wait_seconds) {
  std::fprintf(stderr, "rank %d of %d (%s) works for rank 0\n", ranks.rank, ranks.size, ranks.source.c_str());
  const auto find = [&]() -> Result<JoinPoint> {
    if (!meeting.file.empty()) return runtime::read_join_file(meeting.file);
    return JoinPoint{meeting.endpoint, meeting.keys};
  };
  const auto code = runtime::run_seat(
      {.seat = ranks.rank, .seats = ranks.size, .find = find, .patience_ms = wait_seconds * 1000});
  if (code.ok()) return *code;
  throw UserError("--on mpi", code.error(),
                  meeting.file.empty()
                      ? "is FLYWHEEL_JOIN rank 0's address, and open to this host?"
                      : "ranks meet in a folder that all see: FLYWHEEL_HOME; without one set "
                        "FLYWHEEL_JOIN and FLYWHEEL_JOIN_SECRET_FILE");
}

std::string address_of_config(const std::string& wanted) {
  const std::string address = runtime::resolve_for_others(wanted).value_or_throw("mesh.address");
  runtime::check_can_listen(address).value_or_throw("mesh.address");
  return address;
}

// Of rank 0, for the others: where they look for it, if that is this machine; as the config says; on one host
// its loopback; as the ranks were told, if that is this machine; else the first of a network.
std::string address_of_rank_0(const RankEnvironment& ranks, const Meeting& meeting, const LaunchJob& job) {
  const auto here = [](const std::string& name) -> std::optional<std::string> {
    const auto address = runtime::resolve_for_others(name);
    if (!address.ok() || !runtime::check_can_listen(*address).ok()) return std::nullopt;
    return *address;
  };
  if (const auto told = here(meeting.host)) return *told;
  if (!job.address.empty()) return address_of_config(job.address);
  if (ranks.one_host() || ranks.size == 1) return "127.0.0.1";
  if (const auto told = here(ranks.address)) return *told;
  return runtime::network_address();
}

// An error once the run is not wanted any more.
Result<void> check_wanted(const std::function<int()>& stop_signal) {
  if (stop_signal() == 0) return {};
  return make_error(ErrorCode::kCancelled, "stopped while it waited for its processes");
}

// What this process ends with when a signal came before all seats were taken: those that are there too.
std::optional<Launched> stopped(const Result<std::vector<Host>>& hosts, runtime::Seats& seats,
                                const LaunchJob& job) {
  if (hosts.ok() || hosts.error().code != ErrorCode::kCancelled) return std::nullopt;
  std::fprintf(stderr, "%s\n", hosts.error().message.c_str());
  const int code = 128 + job.stop_signal();
  seats.end(code);
  return Launched{.cluster = std::nullopt, .exit_code = code};
}

Launched launch_ranks(const LaunchFlags& flags, const LaunchJob& job) {
  const RankEnvironment ranks = runtime::read_rank_environment().value_or_throw("--on " + flags.on);
  const Meeting meeting = meeting_of(ranks, job);
  const int64_t wait_seconds = flags.wait_seconds.value_or(kWaitSeconds);
  if (ranks.rank > 0)
    return {.cluster = std::nullopt, .exit_code = work_for_rank_0(ranks, meeting, wait_seconds)};
  std::fprintf(stderr, "rank 0 of %d (%s) drives %d workers%s\n", ranks.size, ranks.source.c_str(),
               job.workers, ranks.size > job.workers ? "; the last processes are spares" : "");
  const std::string address = address_of_rank_0(ranks, meeting, job);
  auto seats = runtime::Seats::open({.seats = ranks.size,
                                     .own = 0,
                                     .address = address,
                                     .port = meeting.port,
                                     .keys = meeting.keys,
                                     .join_file = meeting.file,
                                     .watch = [stop = job.stop_signal] { return check_wanted(stop); }})
                   .value_or_throw("--on " + flags.on);
  auto hosts = seats->wait_for_all(Deadline::after_ms(wait_seconds * 1000));
  if (auto ended = stopped(hosts, *seats, job)) return *ended;
  const std::vector<Host> of_seats = std::move(hosts).value_or_throw("--on " + flags.on);
  Cluster cluster{.address = address, .port = job.port};
  for (const int seat : runtime::deal(job.workers, ranks.size))
    cluster.hosts.push_back(of_seats[static_cast<size_t>(seat)]);
  cluster.launcher = [seats](const runtime::LocalLauncherOptions& local) { return seats->launcher(local); };
  cluster.end = [seats](int exit_code) { seats->end(exit_code); };
  return {.cluster = std::move(cluster), .exit_code = std::nullopt};
}

// --- Slurm, ssh ---------------------------------------------------------------------------------------

// Arguments without NAME VALUE and NAME=VALUE.
std::vector<std::string> without_option(const std::vector<std::string>& args, const std::string& name) {
  std::vector<std::string> others;
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i] == name)
      ++i;
    else if (!args[i].starts_with(name + "="))
      others.push_back(args[i]);
  }
  return others;
}

Launched launch_slurm(const LaunchFlags& flags, const LaunchJob& job) {
  if (const std::string id = env::get("SLURM_JOB_ID"); !id.empty()) {
    if (!flags.options.empty())
      throw UserError("--launch-options", "are words for salloc, and this is in job " + id + " already");
    Cluster cluster = runtime::slurm_cluster({.workers = job.workers, .address = job.address, .job = id})
                          .value_or_throw("--on slurm");
    cluster.port = job.port;
    return {.cluster = std::move(cluster), .exit_code = std::nullopt};
  }
  // Outside of a job: the same command again, in one. salloc takes this process's place, so that signals and
  // the exit code are its own.
  std::vector<std::string> command = {"/proc/self/exe", job.verb};
  const std::vector<std::string> args = without_option(job.args, "--launch-options");
  command.insert(command.end(), args.begin(), args.end());
  const auto salloc = runtime::salloc_command(words_of(flags.options), job.workers, job.threads,
                                              "flywheel-" + job.name, command)
                          .value_or_throw("--on slurm");
  std::vector<char*> words;
  for (const std::string& word : salloc) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  ::execvp(words[0], words.data());
  throw UserError("--on slurm", system_error("cannot start", "salloc"));
}

Launched launch_ssh(const LaunchFlags& flags, const LaunchJob& job) {
  if (flags.hosts.empty()) throw UserError("--hosts", "is not given", "--on ssh --hosts node7,node8");
  Cluster cluster = runtime::ssh_cluster({.hosts = names_of(flags.hosts),
                                          .options = words_of(flags.options),
                                          .workers = job.workers,
                                          .address = job.address})
                        .value_or_throw("--on ssh");
  cluster.port = job.port;
  return {.cluster = std::move(cluster), .exit_code = std::nullopt};
}

// --- Kubernetes ----------------------------------------------------------------------------------------

int write_manifest(const LaunchFlags& flags, const LaunchJob& job) {
  if (!job.beside_config.empty())
    throw UserError(job.beside_config[0], "does not go with --write: pods get the resolved config alone");
  if (flags.image.empty())
    throw UserError("--image", "is not given", "one that has this program in its PATH");
  if (flags.claim.empty()) {
    throw UserError("--claim", "is not given",
                    "a PersistentVolumeClaim that all pods may write, with the data: FLYWHEEL_HOME is there");
  }
  const std::string file = std::string(runtime::kKubernetesFiles) + "/config.yaml";
  const std::string manifest =
      runtime::kubernetes_manifest({.name = job.name,
                                    .image = flags.image,
                                    .claim = flags.claim,
                                    .pods = job.workers,
                                    .cores = job.threads,
                                    .files = {{"config.yaml", job.config + "\n"}},
                                    .command = {"flywheel", job.verb, file, "--on", "k8s", "--wait",
                                                std::to_string(flags.wait_seconds.value_or(kWaitSeconds))}})
          .value_or_throw("--on k8s");
  write_file(flags.write, manifest).value_or_throw("--write");
  const std::string secret = runtime::kubernetes_secret(job.name);
  std::fprintf(
      stderr,
      "%s written: %d pods. To start it:\n"
      "  head -c 32 /dev/urandom | base64 | kubectl create secret generic %s --from-file=secret=/dev/stdin\n"
      "  kubectl apply -f %s\n",
      flags.write.c_str(), job.workers, secret.c_str(), flags.write.c_str());
  if (!env::store().empty()) {
    std::fprintf(
        stderr,
        "FLYWHEEL_STORE is not in the manifest: without the Secret %s pods keep names and runs in the "
        "claim. Before the second command:\n"
        "  printf %%s \"$FLYWHEEL_STORE\" | kubectl create secret generic %s "
        "--from-file=address=/dev/stdin\n",
        runtime::kKubernetesStore, runtime::kKubernetesStore);
  }
  return 0;
}

Launched launch_kubernetes(const LaunchFlags& flags, const LaunchJob& job) {
  if (!flags.write.empty()) return {.cluster = std::nullopt, .exit_code = write_manifest(flags, job)};
  if (!flags.image.empty() || !flags.claim.empty())
    throw UserError(flags.image.empty() ? "--claim" : "--image", "is for --write");
  if (env::get("JOB_COMPLETION_INDEX").empty()) {
    throw UserError("--on k8s", "this is no pod of an Indexed Job: JOB_COMPLETION_INDEX is not set",
                    "--write job.yaml writes the manifest of one");
  }
  return launch_ranks(flags, job);
}

// --- Ray -----------------------------------------------------------------------------------------------

std::string ray_token() {
  if (const std::string token = env::secret("RAY_AUTH_TOKEN"); !token.empty()) return token;
  const std::string file = env::get("RAY_AUTH_TOKEN_PATH");
  return file.empty() ? "" : runtime::read_secret_file(file).value_or_throw("RAY_AUTH_TOKEN_PATH");
}

// Of this machine, for Ray's nodes. A dashboard at loopback says nothing of where they are.
std::string address_for_ray(const std::string& dashboard, const LaunchJob& job) {
  if (!job.address.empty()) return address_of_config(job.address);
  const size_t begin = dashboard.find("://");
  if (begin == std::string::npos) {
    throw UserError("--dashboard", "\"" + dashboard + "\" is not like http://10.0.0.1:8265");
  }
  const std::string host = dashboard.substr(begin + 3, dashboard.find_first_of(":/", begin + 3) - begin - 3);
  const std::string there = runtime::resolve_address(host).value_or_throw("--dashboard");
  return runtime::is_loopback(there) ? runtime::network_address()
                                     : runtime::address_facing(there).value_or_throw("--dashboard");
}

Launched launch_ray(const LaunchFlags& flags, const LaunchJob& job) {
  std::string dashboard = flags.dashboard.empty() ? env::get("RAY_API_SERVER_ADDRESS") : flags.dashboard;
  if (dashboard.empty()) dashboard = "http://127.0.0.1:8265";
  std::random_device random;
  const std::string file = fmt::format("{}/launch/ray-{:08x}{:08x}.json", env::home(), random(), random());
  const int64_t cores = std::max<int64_t>(1, job.threads);
  const auto ray = std::make_shared<std::unique_ptr<runtime::RayJob>>();
  const std::string address = address_for_ray(dashboard, job);
  auto seats = runtime::Seats::open({.seats = job.workers,
                                     .own = -1,
                                     .address = address,
                                     .port = 0,
                                     .keys = {},
                                     .join_file = file,
                                     .watch = [ray, stop = job.stop_signal]() -> Result<void> {
                                       RETURN_IF_ERROR(check_wanted(stop));
                                       return (*ray)->state();
                                     }})
                   .value_or_throw("--on ray");
  *ray = runtime::RayJob::submit({.dashboard = dashboard,
                                  .token = ray_token(),
                                  .copies = job.workers,
                                  .cores = cores,
                                  .command = {"/proc/self/exe", "seat"},
                                  .variables = {"FLYWHEEL_JOIN_FILE=" + file}})
             .value_or_throw("--on ray");
  std::fprintf(stderr, "Ray job %s: %d actors\n", (*ray)->id().c_str(), job.workers);
  const auto hosts =
      seats->wait_for_all(Deadline::after_ms(flags.wait_seconds.value_or(kWaitSeconds) * 1000));
  if (auto ended = stopped(hosts, *seats, job)) return *ended;
  if (!hosts.ok()) {
    throw UserError("--on ray", hosts.error(),
                    fmt::format("has the cluster {} free CPUs, does it see {}, and does it reach {}?",
                                job.workers, file, address));
  }
  (*ray)->started();
  Cluster cluster{.hosts = *hosts, .address = address, .port = job.port, .cores = cores};
  cluster.launcher = [seats](const runtime::LocalLauncherOptions& local) { return seats->launcher(local); };
  cluster.end = [seats, ray](int exit_code) {
    seats->end(exit_code);
    (*ray)->stop();
  };
  return {.cluster = std::move(cluster), .exit_code = std::nullopt};
}

}  // namespace

void add_launch_flags(CLI::App& app, LaunchFlags& flags) {
  app.add_option("--on", flags.on,
                 "Where workers run: local, ssh, slurm, mpi (also torchrun and srun), k8s, ray; default: as "
                 "mesh.hosts says");
  app.add_option("--hosts", flags.hosts, "With --on ssh: names of hosts, node7,node8");
  app.add_option("--launch-options", flags.options,
                 "Words for ssh or salloc: --launch-options='--partition=gpu --time=60'");
  app.add_option("--wait", flags.wait_seconds,
                 fmt::format("Seconds until all processes of --on mpi, k8s or ray must be there; default: {}",
                             kWaitSeconds))
      ->check(at_least(1));
  app.add_option("--write", flags.write, "With --on k8s: write the Job's manifest to this file and stop");
  app.add_option("--image", flags.image, "With --write: the container's image");
  app.add_option("--claim", flags.claim, "With --write: the PersistentVolumeClaim with the data");
  app.add_option("--dashboard", flags.dashboard,
                 "With --on ray: its address; default: RAY_API_SERVER_ADDRESS, then http://127.0.0.1:8265");
}

Launched launch(const LaunchFlags& flags, const LaunchJob& job) {
  if (!flags.on.empty()) check_known("--on", flags.on, {"k8s", "local", "mpi", "ray", "slurm", "ssh"});
  const auto only_for = [&](const char* flag, bool given, const std::vector<std::string>& places) {
    if (given && std::ranges::find(places, flags.on) == places.end())
      throw UserError(flag, fmt::format("is for --on {}", fmt::join(places, ", ")));
  };
  only_for("--hosts", !flags.hosts.empty(), {"ssh"});
  only_for("--launch-options", !flags.options.empty(), {"ssh", "slurm"});
  only_for("--wait", flags.wait_seconds.has_value(), {"k8s", "mpi", "ray"});
  only_for("--write", !flags.write.empty(), {"k8s"});
  only_for("--image", !flags.image.empty(), {"k8s"});
  only_for("--claim", !flags.claim.empty(), {"k8s"});
  only_for("--dashboard", !flags.dashboard.empty(), {"ray"});
  if (flags.on.empty()) return {};
  if (job.names_hosts) {
    throw UserError("--on", "mesh.hosts already names the hosts", "leave one of them away");
  }
  if (flags.on == "mpi") return launch_ranks(flags, job);
  if (flags.on == "slurm") return launch_slurm(flags, job);
  if (flags.on == "k8s") return launch_kubernetes(flags, job);
  if (flags.on == "ray") return launch_ray(flags, job);
  if (flags.on == "ssh") return launch_ssh(flags, job);
  return {};
}

}  // namespace flywheel::cli
