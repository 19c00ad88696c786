// A job in a Ray cluster that keeps so many copies of a command running, over Ray's HTTP interface for jobs
// (docs.ray.io, "Ray Jobs REST API"): each copy is a child of an actor, which Ray starts again when it or its
// node is lost. A job that ends on its own is submitted
// again; one that somebody stopped is not.
//
// Ownership: the job is stopped with this. Threads: any; one of its own looks after the job. Errors:
// kUnavailable when the dashboard does not answer or the job cannot run, kDenied for a wrong token.
//
//   ASSIGN_OR_RETURN(auto job, RayJob::submit({.dashboard = "http://10.0.0.1:8265", .copies = 4, .command =
//   ...})); RETURN_IF_ERROR(job->state());       // while the copies come up
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"

namespace flywheel::runtime {

struct RayJobOptions {
  std::string dashboard;  // http://host:8265
  std::string token;      // empty: the cluster wants none
  int copies = 1;
  int64_t cores = 1;                   // for each
  std::vector<std::string> command;    // with RANK and WORLD_SIZE in its environment
  std::vector<std::string> variables;  // NAME=VALUE for it; they can be read in the dashboard: no secrets
};

class RayJob {
 public:
  static Result<std::unique_ptr<RayJob>> submit(RayJobOptions options);
  ~RayJob();
  RayJob(const RayJob&) = delete;
  RayJob& operator=(const RayJob&) = delete;

  // An error when it has ended for good, with the last of what it said: before started() was called, stopped
  // by somebody, or too often.
  Result<void> state() const;
  // All copies are up: from now on a job that ends is submitted again.
  void started();
  void stop();  // also if it runs on; once
  std::string id() const;

 private:
  explicit RayJob(RayJobOptions options) : options_(std::move(options)) {}
  Result<std::string> post_job() const;
  Result<std::string> call(const std::string& path, const std::string* body) const;
  std::string last_words(const std::string& id) const;
  void look_after();

  const RayJobOptions options_;
  mutable std::mutex mutex_;  // all below
  std::condition_variable changed_;
  std::string id_;
  bool started_ = false, stop_ = false;
  int resubmitted_ = 0;
  std::optional<Error> failed_;
  std::thread thread_;
};

}  // namespace flywheel::runtime
