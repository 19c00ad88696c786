// The libraries in this program, by the version that is loaded (headers' only where a library does not tell),
// and what stands beside it.
#include <curl/curl.h>
#include <libpq-fe.h>
#include <openssl/crypto.h>
#include <sqlite3.h>
#include <zmq.h>

#include <arrow/config.h>
#include <boost/version.hpp>
#include <filesystem>

#include "base/env.h"
#include "base/file.h"
#include "base/process.h"
#include "doctor/doctor.h"
#include "local_sources.h"
#include "runtime/host_transport.h"
#include "store/store.h"
#ifdef FLYWHEEL_TORCH
#include "train/network.h"
#endif

namespace flywheel::cli::doctor {
namespace {

namespace fs = std::filesystem;

std::string dotted(int number, int step) {  // 150018, 10000 -> "15.18"
  return fmt::format("{}.{}", number / step, number % step);
}

std::string zeromq_version() {
  int major = 0, minor = 0, patch = 0;
  zmq_version(&major, &minor, &patch);
  return fmt::format("{}.{}.{}", major, minor, patch);
}

// The first line of what a program says of itself that holds `mark`; "" where it is not there.
std::string say_of(const std::string& program, const std::string& argument, const std::string& mark = "") {
  const auto out = run_process({program, argument}, {.deadline = Deadline::after_ms(10'000)});
  if (!out.ok() || out->exit_code != 0) return "";
  const size_t at = out->stdout_text.find(mark);
  return at == std::string::npos ? "" : out->stdout_text.substr(at, out->stdout_text.find('\n', at) - at);
}

// Gloo is loaded when it is first used; whether that would work.
std::string gloo_state(Report& report) {
  const auto ready = runtime::check_host_transport();
  if (ready.ok()) return "loads";
  report.problems.push_back({ready.error().message, "apt install libgloo-dev, then `make build`"});
  return "does not load";
}

#ifdef FLYWHEEL_TORCH
// The same of libtorch, which workers load.
std::string torch_state(Report& report) {
  const auto ready = train::Network::load();
  if (ready.ok()) return FLYWHEEL_TORCH_VERSION;
  report.problems.push_back({ready.error().message, "`make setup`, then `make build`"});
  return "does not load";
}
#endif

std::string postgres_server() {
  std::error_code error;
  std::string newest;
  for (const auto& version : fs::directory_iterator("/usr/lib/postgresql", error)) {
    const std::string program = version.path() / "bin/postgres";
    if (fs::exists(program, error)) newest = std::max(newest, program);
  }
  return say_of(newest.empty() ? "postgres" : newest, "--version");
}

}  // namespace

void look_at_libraries(Report& report) {
  OrderedJson& libraries = report.json["libraries"] = OrderedJson::object();
#ifdef FLYWHEEL_TORCH
  libraries["libtorch"] = torch_state(report);
  report.json["torch"] = true;
#else
  report.json["torch"] = false;
  report.advice.push_back(
      {"built without libtorch: train and demo are missing",
       "`make setup`, then `make build CMAKE_FLAGS=-DFLYWHEEL_TORCH=ON` in a fresh build/"});
#endif
  libraries["arrow"] = arrow::GetBuildInfo().version_string;
  libraries["zeromq"] = zeromq_version();
  libraries["gloo"] = gloo_state(report);
  libraries["boost"] =
      fmt::format("{}.{}.{}", BOOST_VERSION / 100'000, BOOST_VERSION / 100 % 1000, BOOST_VERSION % 100);
  libraries["sqlite"] = sqlite3_libversion();
  libraries["libpq"] = dotted(PQlibVersion(), 10'000);
  libraries["curl"] = curl_version_info(CURLVERSION_NOW)->version;
  libraries["openssl"] = OpenSSL_version(OPENSSL_VERSION_STRING);
  if (zmq_has("curve") == 0) {
    report.problems.push_back({"this ZeroMQ has no CURVE: workers on other hosts cannot be reached safely",
                               "use the distribution's libzmq5 (apt install --reinstall libzmq5)"});
  }
  std::string line;
  for (const auto& [name, version] : libraries.items())
    line += (line.empty() ? "" : ", ") + name + " " + version.get<std::string>();
  report.lines.emplace_back("libraries", line);
}

void look_at_tools(Report& report) {
  const auto add = [&](const std::string& key, const std::string& label, const std::string& found,
                       const std::string& why, const std::string& mend) {
    report.json[key] = found.empty() ? OrderedJson() : OrderedJson(found);
    report.lines.emplace_back(label, found.empty() ? "none" : found);
    if (found.empty() && !mend.empty()) report.advice.push_back({why, mend});
  };
  std::string nvcc = say_of("nvcc", "--version", "release");
  if (nvcc.empty()) nvcc = say_of("/usr/local/cuda/bin/nvcc", "--version", "release");
  add("nvcc", "nvcc", nvcc, "no nvcc: this build compiles no CUDA code",
      report.json["gpus"].empty() ? ""
                                  : "install NVIDIA's CUDA toolkit (package cuda-nvcc), then `make build`");
  add("postgresql_server", "PostgreSQL", postgres_server(),
      "no PostgreSQL server here: the store's tests with one are skipped (a file of SQLite needs none)",
      "apt install postgresql");
  std::string weights = smollm2_file();
  if (weights.empty() && path_exists(env::home() + "/flywheel.db")) {
    auto store = store::Store::open(env::home());
    const auto stored = store.ok() ? store->resolve("smollm2") : Result<store::Artifact>(store.error());
    if (stored.ok()) weights = stored->ref() + " in the store";
  }
  add("smollm2", "SmolLM2", weights, "no SmolLM2 weights: chat and the last part of the demo want them",
      "flywheel models pull smollm2");
  const std::vector<std::string> folders = documentation_folders();
  std::string list;
  for (const std::string& folder : folders) list += (list.empty() ? "" : ", ") + folder;
  add("documentation", "documentation", list, "no documentation packages: the demo has nothing to learn from",
      kInstallDocumentation);
}

}  // namespace flywheel::cli::doctor
