#include "runtime/ray_job.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>

#include "base/deadline.h"
#include "base/file.h"
#include "base/process.h"

namespace flywheel::runtime {
namespace {

// Ray's dashboard as far as a job knows it. A job's state is the file `info`; what is submitted is job-1,
// job-2 and so on, or what the file `submitted` says; `posts` has a dot for each submission, `stopped` the
// stopped jobs. From the second one on a submission takes a second.
constexpr const char* kDashboard = R"(
import http.server, os, sys, time
folder, posts = sys.argv[1], 0

class Dashboard(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass
    def note(self, name, text):
        with open(f"{folder}/{name}", "a") as file:
            file.write(text)
    def say(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        self.say(open(f"{folder}/" + ("logs" if self.path.endswith("/logs") else "info")).read())
    def do_POST(self):
        global posts
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path.endswith("/stop"):
            self.note("stopped", self.path.split("/")[3] + " ")
            return self.say("{}")
        posts += 1
        self.note("posts", ".")
        if posts > 1:
            time.sleep(1)
        given = f"{folder}/submitted"
        self.say(open(given).read() if os.path.exists(given) else '{"submission_id": "job-%d"}' % posts)

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
with open(f"{folder}/port.tmp", "w") as file:
    file.write(str(server.server_port))
os.rename(f"{folder}/port.tmp", f"{folder}/port")
server.serve_forever()
)";

class RayJobTest : public ::testing::Test {
 protected:
  void SetUp() override {
    say("info", R"({"status": "RUNNING"})");
    say("logs", R"({"logs": "no room\n"})");
    auto server =
        Process::start({"python3", "-c", kDashboard, folder_.path()}, {.output_file = folder_ / "log"});
    if (!server.ok()) GTEST_SKIP() << "no python3 to be a dashboard";
    server_ = std::move(server).value();
    ASSERT_TRUE(wait_until([&] { return path_exists(folder_ / "port"); })) << said("log");
  }
  Result<std::unique_ptr<RayJob>> submit() {
    return RayJob::submit({.dashboard = "http://127.0.0.1:" + said("port"), .command = {"true"}});
  }
  void say(const std::string& name, const std::string& text) { write_file(folder_ / name, text).value(); }
  std::string said(const std::string& name) { return read_file(folder_ / name).value_or(""); }
  template <typename Holds>
  static bool wait_until(Holds&& holds) {
    for (const Deadline limit = Deadline::after_ms(30'000); !limit.expired(); ::usleep(5000)) {
      if (holds()) return true;
    }
    return false;
  }

 private:
  const TempFolder folder_;
  Process server_;
};

TEST_F(RayJobTest, TheJobThatRunsLastIsStopped) {
  auto job = submit().value();
  EXPECT_EQ(job->id(), "job-1");
  job->started();
  say("info", R"({"status": "FAILED"})");
  ASSERT_TRUE(wait_until([&] { return said("posts") == ".."; }));  // under way; its answer takes a second
  job->stop();
  EXPECT_EQ(said("stopped"), "job-2 ");
}

TEST_F(RayJobTest, AJobThatSomebodyStoppedIsNotSubmittedAgain) {
  auto job = submit().value();
  job->started();
  say("info", R"({"status": "STOPPED"})");
  ASSERT_TRUE(wait_until([&] { return !job->state().ok(); }));
  EXPECT_NE(job->state().error().message.find("job-1 ended as STOPPED: no room"), std::string::npos)
      << job->state().error().message;
  EXPECT_EQ(said("posts"), ".");
}

// What is said in another type than it should be is as if it were not said.
TEST_F(RayJobTest, AnswersOfAnotherTypeDoNoHarm) {
  say("submitted", R"({"submission_id": 5})");
  const auto none = submit();
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.error().message.find("Ray gave no job"), std::string::npos) << none.error().message;
  say("submitted", R"({"submission_id": "job-7"})");
  say("info", R"({"status": 5})");
  auto job = submit().value();
  ::usleep(1'500'000);  // it has looked
  EXPECT_TRUE(job->state().ok());
  say("logs", R"({"logs": ["no room"]})");
  say("info", R"({"status": "FAILED"})");
  ASSERT_TRUE(wait_until([&] { return !job->state().ok(); }));
  EXPECT_NE(job->state().error().message.find("job-7 ended as FAILED"), std::string::npos)
      << job->state().error().message;
}

}  // namespace
}  // namespace flywheel::runtime
