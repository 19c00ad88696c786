#include "runtime/kubernetes.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>

#include "base/json.h"

namespace flywheel::runtime {
namespace {

constexpr size_t kLabelBytes = 63;  // RFC 1123
constexpr const char* kHome = "/flywheel";
constexpr const char* kJoin = "/etc/flywheel/join";
constexpr int kPodFailures = 20;  // of each pod, until the Job is given up; evictions do not count

// Texts between double quotes, those of several lines as they are: a number in an environment variable, or a
// name of digits, must stay a text.
void emit(YAML::Emitter& out, const Json& node) {
  if (node.is_object()) {
    out << YAML::BeginMap;
    for (const auto& [key, value] : node.items()) {
      out << YAML::Key << key << YAML::Value;
      emit(out, value);
    }
    out << YAML::EndMap;
  } else if (node.is_array()) {
    out << YAML::BeginSeq;
    for (const Json& entry : node) emit(out, entry);
    out << YAML::EndSeq;
  } else if (node.is_string()) {
    const std::string text = node.get<std::string>();
    out << (text.find('\n') == std::string::npos ? YAML::DoubleQuoted : YAML::Literal) << text;
  } else if (node.is_boolean()) {
    out << node.get<bool>();
  } else {
    out << node.get<int64_t>();
  }
}

bool is_label(const std::string& name) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  return !name.empty() && name.size() <= kLabelBytes && letter(name.front()) && letter(name.back()) &&
         std::ranges::all_of(name, [&](char c) { return letter(c) || c == '-'; });
}

Json variable(const std::string& name, const std::string& value) {
  return {{"name", name}, {"value", value}};
}

Json pod_of(const KubernetesJob& job) {
  const std::string first = job.name + "-0." + job.name;
  Json container = {{"name", "flywheel"}, {"image", job.image}, {"command", job.command}};
  container["env"] = {variable("WORLD_SIZE", std::to_string(job.pods)), variable("MASTER_ADDR", first),
                      variable("FLYWHEEL_JOIN", "tcp://" + first + ":" + std::to_string(job.port)),
                      variable("FLYWHEEL_JOIN_SECRET_FILE", std::string(kJoin) + "/secret"),
                      variable("FLYWHEEL_HOME", kHome)};
  // An address with a password: a manifest is read by many. Without that Secret the names are in the claim.
  const Json store = {{"name", kKubernetesStore}, {"key", "address"}, {"optional", true}};
  container["env"].push_back({{"name", "FLYWHEEL_STORE"}, {"valueFrom", {{"secretKeyRef", store}}}});
  container["ports"] = Json::array({{{"name", "join"}, {"containerPort", job.port}}});
  container["volumeMounts"] = {{{"name", "home"}, {"mountPath", kHome}},
                               {{"name", "files"}, {"mountPath", kKubernetesFiles}, {"readOnly", true}},
                               {{"name", "join"}, {"mountPath", kJoin}, {"readOnly", true}}};
  if (job.cores > 0) container["resources"]["requests"]["cpu"] = job.cores;
  const Json home = {{"name", "home"}, {"persistentVolumeClaim", {{"claimName", job.claim}}}};
  const Json files = {{"name", "files"}, {"configMap", {{"name", job.name}}}};
  const Json join = {{"name", "join"},
                     {"secret", {{"secretName", kubernetes_secret(job.name)}, {"defaultMode", 0440}}}};
  return {{"subdomain", job.name},
          {"restartPolicy", "Never"},
          {"containers", Json::array({container})},
          {"volumes", Json::array({home, files, join})}};
}

}  // namespace

std::string kubernetes_secret(const std::string& job_name) {
  return job_name + "-join";
}

Result<std::string> kubernetes_manifest(const KubernetesJob& job) {
  // The host of the last pod is NAME-INDEX, which must be a label too; so must the Secret's name.
  const std::string longest = std::max(std::to_string(job.pods - 1), std::string("join"),
                                       [](const auto& a, const auto& b) { return a.size() < b.size(); });
  for (const std::string& name : {job.name, job.name + "-" + longest}) {
    if (!is_label(name)) {
      return make_error(ErrorCode::kInvalid,
                        "\"{}\" is no name for Kubernetes: lower-case letters, digits and -, at most {} "
                        "characters, and it may not begin with -",
                        name, kLabelBytes);
    }
  }
  if (job.image.empty()) return make_error(ErrorCode::kInvalid, "an image is needed");
  if (!is_label(job.claim))
    return make_error(ErrorCode::kInvalid, "\"{}\" is no name of a PersistentVolumeClaim", job.claim);
  CHECK(job.pods > 0 && !job.command.empty(), "a job of {} pods", job.pods);
  const Json labels = {{"app.kubernetes.io/name", "flywheel"}, {"app.kubernetes.io/instance", job.name}};
  const Json named = {{"name", job.name}, {"labels", labels}};
  const Json files = {{"apiVersion", "v1"}, {"kind", "ConfigMap"}, {"metadata", named}, {"data", job.files}};
  Json service = {{"apiVersion", "v1"}, {"kind", "Service"}, {"metadata", named}};
  service["spec"] = {{"clusterIP", "None"},
                     {"publishNotReadyAddresses", true},  // pod 0 is looked for before it is ready
                     {"selector", labels},
                     {"ports", Json::array({{{"name", "join"}, {"port", job.port}}})}};
  const Json evicted = {
      {"action", "Ignore"},
      {"onPodConditions", Json::array({{{"type", "DisruptionTarget"}, {"status", "True"}}})}};
  // Its code is the run's: a pod that is away at the end would find nobody to work for.
  const Json first = {{"succeededIndexes", "0"}};
  Json indexed = {{"apiVersion", "batch/v1"}, {"kind", "Job"}, {"metadata", named}};
  indexed["spec"] = {{"completionMode", "Indexed"},
                     {"completions", job.pods},
                     {"parallelism", job.pods},
                     {"backoffLimit", kPodFailures * job.pods},  // all fail with pod 0
                     {"successPolicy", {{"rules", Json::array({first})}}},
                     {"podFailurePolicy", {{"rules", Json::array({evicted})}}},
                     {"template", {{"metadata", {{"labels", labels}}}, {"spec", pod_of(job)}}}};
  YAML::Emitter out;
  for (const Json& document : {files, service, indexed}) {
    out << YAML::BeginDoc;
    emit(out, document);
  }
  if (!out.good())
    return make_error(ErrorCode::kInvalid, "the manifest cannot be written: {}", out.GetLastError());
  return std::string(out.c_str()) + "\n";
}

}  // namespace flywheel::runtime
