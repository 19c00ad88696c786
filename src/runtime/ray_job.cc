#include "runtime/ray_job.h"

#include <algorithm>

#include "base/http_client.h"
#include "base/json.h"
#include "base/log.h"
#include "runtime/cluster_internal.h"
#include "runtime/modules.h"

namespace flywheel::runtime {
namespace {

constexpr int64_t kCallMs = 15'000;
constexpr auto kLook = std::chrono::milliseconds(1000);  // at the job
constexpr int kResubmits = 5;
constexpr size_t kWordsShown = 600;

// Run by the Python of the cluster: copies, cores, the command, then its variables after "--". Ray runs a
// call again that died with its actor, on any node that has room.
constexpr const char* kActors = R"(
import os, signal, subprocess, sys
os.environ["RAY_DEDUP_LOGS"] = "0"
import ray

@ray.remote(max_restarts=-1, max_task_retries=-1)
class Copy:
    def run(self, command, variables):
        code = subprocess.Popen(command, env={**os.environ, **variables}).wait()
        return code if code >= 0 else 128 - code

copies, cores, cut = int(sys.argv[1]), float(sys.argv[2]), sys.argv.index("--")
command, variables = sys.argv[3:cut], dict(entry.split("=", 1) for entry in sys.argv[cut + 1:])
ray.init(address="auto")
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
variables["WORLD_SIZE"] = str(copies)
actors = [Copy.options(num_cpus=cores, scheduling_strategy="SPREAD").remote() for _ in range(copies)]
sys.exit(max(ray.get([actor.run.remote(command, {**variables, "RANK": str(rank)}) for rank, actor in enumerate(actors)])))
)";

}  // namespace

Result<std::string> RayJob::call(const std::string& path, const std::string* body) const {
  HttpOptions http{.headers = {{"Content-Type", "application/json"}},
                   .deadline = Deadline::after_ms(kCallMs)};
  if (!options_.token.empty()) http.headers["Authorization"] = "Bearer " + options_.token;
  const std::string url = options_.dashboard + path;
  const Result<HttpReply> reply = body == nullptr ? http_get(url, http) : http_post(url, *body, http);
  if (!reply.ok()) {
    return make_error(reply.error().code, "Ray's dashboard at {} does not answer: {}", options_.dashboard,
                      reply.error().message);
  }
  if (reply->status == 401 || reply->status == 403) {
    return make_error(ErrorCode::kDenied,
                      "Ray's dashboard at {} refuses {} token: RAY_AUTH_TOKEN is the cluster's",
                      options_.dashboard, options_.token.empty() ? "calls without a" : "this");
  }
  if (reply->status != 200) {
    return make_error(ErrorCode::kUnavailable, "{}: status {}: {}", url, reply->status,
                      reply->body.substr(0, kWordsShown));
  }
  return reply->body;
}

Result<std::string> RayJob::post_job() const {
  std::vector<std::string> words = {"python3", "-c", kActors, std::to_string(options_.copies),
                                    std::to_string(options_.cores)};
  words.insert(words.end(), options_.command.begin(), options_.command.end());
  words.push_back("--");
  words.insert(words.end(), options_.variables.begin(), options_.variables.end());
  std::string line;
  for (const std::string& word : words) line += (line.empty() ? "" : " ") + shell_quoted(word);
  const std::string body = Json{{"entrypoint", line}, {"metadata", {{"name", "flywheel"}}}}.dump();
  ASSIGN_OR_RETURN(const std::string text, call("/api/jobs/", &body));
  ASSIGN_OR_RETURN(const Json reply, parse_json(text));
  const std::string id = text_of(reply, "submission_id");
  if (id.empty())
    return make_error(ErrorCode::kUnavailable, "Ray gave no job: {}", text.substr(0, kWordsShown));
  return id;
}

Result<std::unique_ptr<RayJob>> RayJob::submit(RayJobOptions options) {
  while (options.dashboard.ends_with('/')) options.dashboard.pop_back();
  if (options.command[0] == "/proc/self/exe") options.command[0] = this_program();
  std::unique_ptr<RayJob> job(new RayJob(std::move(options)));
  ASSIGN_OR_RETURN(job->id_, job->post_job());
  job->thread_ = std::thread([self = job.get()] { self->look_after(); });
  return job;
}

RayJob::~RayJob() {
  stop();
}

void RayJob::stop() {
  {
    std::scoped_lock lock(mutex_);
    if (std::exchange(stop_, true)) return;
  }
  changed_.notify_all();
  if (!thread_.joinable()) return;
  thread_.join();
  const std::string id = this->id(), nothing;  // of now: the thread may have submitted another one
  if (const auto stopped = call("/api/jobs/" + id + "/stop", &nothing); !stopped.ok())
    LOG_WARN("Ray job {} was not stopped: {}", id, stopped.error().message);
}

void RayJob::started() {
  std::scoped_lock lock(mutex_);
  started_ = true;
}

std::string RayJob::id() const {
  std::scoped_lock lock(mutex_);
  return id_;
}

Result<void> RayJob::state() const {
  std::scoped_lock lock(mutex_);
  if (failed_) return *failed_;
  return {};
}

std::string RayJob::last_words(const std::string& id) const {
  const auto text = call("/api/jobs/" + id + "/logs", nullptr);
  const auto json = text.ok() ? parse_json(*text) : Result<Json>(text.error());
  std::string words = json.ok() ? text_of(*json, "logs") : "";
  while (words.ends_with('\n')) words.pop_back();
  return words.substr(words.size() - std::min(words.size(), kWordsShown));
}

// A dashboard that does not answer is asked again: the copies do not need it.
void RayJob::look_after() {
  std::unique_lock lock(mutex_);
  while (!stop_ && !failed_) {
    changed_.wait_for(lock, kLook);
    const std::string id = id_;
    lock.unlock();
    const auto text = call("/api/jobs/" + id, nullptr);
    const auto info = text.ok() ? parse_json(*text) : Result<Json>(text.error());
    const std::string status = info.ok() ? text_of(*info, "status") : "";
    const bool ended = status == "SUCCEEDED" || status == "FAILED" || status == "STOPPED";
    const std::string words = ended ? last_words(id) : "";
    lock.lock();
    if (!ended || stop_) continue;
    if (!started_ || status == "STOPPED" || ++resubmitted_ > kResubmits) {
      failed_ = make_error(ErrorCode::kUnavailable, "Ray job {} ended as {}: {}", id, status, words);
      LOG_WARN("{}", failed_->message);
      return;
    }
    LOG_WARN("Ray job {} ended as {} and is submitted again: {}", id, status, words);
    lock.unlock();
    const Result<std::string> next = post_job();
    lock.lock();
    if (next.ok())
      id_ = *next;
    else
      LOG_WARN("{}", next.error().message);
  }
}

}  // namespace flywheel::runtime
