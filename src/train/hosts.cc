#include "train/hosts.h"

#include <algorithm>
#include <set>

#include "runtime/addresses.h"

namespace flywheel::train {
namespace {

constexpr int kPorts = 3;  // a controller's channels: commands, results, control

}  // namespace

runtime::Cluster find_hosts(const MeshConfig& mesh) {
  runtime::Cluster hosts;
  if (mesh.hosts.empty()) {
    if (mesh.address.empty() && mesh.port == 0) return hosts;
    throw UserError(mesh.address.empty() ? "mesh.port" : "mesh.address",
                    "is for workers on other hosts; name them in mesh.hosts, or say with --on who does");
  }
  hosts.port = static_cast<int>(mesh.port);
  hosts.address = runtime::resolve_address(mesh.address).value_or_throw("mesh.address");
  runtime::check_can_listen(hosts.address).value_or_throw("mesh.address");
  if (mesh.port != 0) {
    const auto free = runtime::check_can_listen(hosts.address, static_cast<int>(mesh.port), kPorts);
    if (!free.ok()) {
      throw UserError(
          "mesh.port", free.error().message,
          fmt::format("ports {} to {} are needed; 0 takes any free ones", mesh.port, mesh.port + kPorts - 1));
    }
  }
  for (const HostConfig& host : mesh.hosts) {
    const std::string where = "mesh.hosts: host " + host.name;
    const std::string address = runtime::resolve_address(host.address).value_or_throw(where);
    if (host.prefix.empty()) {
      const auto local = runtime::check_can_listen(address);
      if (!local.ok()) {
        throw UserError(where, local.error().message,
                        "its workers are started here because it has no prefix; for another machine give "
                        "prefix: [ssh, " +
                            host.name + "]");
      }
    }
    hosts.hosts.push_back({host.name, host.prefix, address});
  }
  return hosts;
}

int64_t count_machines(const runtime::Cluster& cluster) {
  std::set<std::string> names;
  for (const runtime::Host& host : cluster.hosts) names.insert(host.name);
  return std::max<int64_t>(1, std::ssize(names));
}

}  // namespace flywheel::train
