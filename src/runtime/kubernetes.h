// The manifest of a Kubernetes Indexed Job whose pods are the ranks of one program (seats.h): a ConfigMap
// with its files, a headless Service that gives pod 0 a name, and the Job. docs/launch.md.
//
// In a pod JOB_COMPLETION_INDEX, set by Kubernetes, is the rank; WORLD_SIZE, MASTER_ADDR and FLYWHEEL_JOIN
// are in the manifest; the secret that ranks meet with is not: the Job mounts a Secret that is made beside
// it.
//
// Errors: kInvalid for a name that Kubernetes would not take, naming it.
//
//   ASSIGN_OR_RETURN(const std::string yaml, kubernetes_manifest({.name = "tiny", .image = "...", .pods = 4,
//   ...}));
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/result.h"

namespace flywheel::runtime {

constexpr const char* kKubernetesFiles = "/etc/flywheel/files";  // where the files lie in a pod

struct KubernetesJob {
  std::string name;   // of all that is made; a label of DNS
  std::string image;  // its entry point does not matter
  std::string
      claim;  // a PersistentVolumeClaim that all pods may write (ReadWriteMany): FLYWHEEL_HOME is there
  int pods = 1;
  int64_t cores = 0;                         // of a pod; 0: not asked for
  int port = 7400;                           // where pod 0 waits for the others
  std::map<std::string, std::string> files;  // name -> content, in kKubernetesFiles
  std::vector<std::string> command;          // of every pod
};

Result<std::string> kubernetes_manifest(const KubernetesJob& job);
// The Secret that pods take FLYWHEEL_STORE from, where it is there; its key is `address`.
inline constexpr const char* kKubernetesStore = "flywheel-store";
// The name of the Secret that the Job mounts; its key is `secret`.
std::string kubernetes_secret(const std::string& job_name);

}  // namespace flywheel::runtime
