#include "runtime/cluster.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/file.h"
#include "runtime/addresses.h"
#include "runtime/cluster_internal.h"
#include "runtime/hosts_launcher.h"
#include "runtime/join_point.h"
#include "runtime/kubernetes.h"
#include "runtime/seat.h"
#include "runtime/seats.h"

namespace flywheel::runtime {
namespace {

using Places = std::vector<int>;

TEST(Cluster, DealsWorkersInBlocksAndLeavesSparePlaces) {
  EXPECT_EQ(deal(4, 2), (Places{0, 0, 1, 1}));
  EXPECT_EQ(deal(5, 2), (Places{0, 0, 0, 1, 1}));
  EXPECT_EQ(deal(2, 3), (Places{0, 1}));
  EXPECT_EQ(deal(3, 1), (Places{0, 0, 0}));
}

TEST(Cluster, ReadsSlurmsCounts) {
  EXPECT_EQ(parse_slurm_counts("2(x2),1").value(), (Places{2, 2, 1}));
  EXPECT_EQ(parse_slurm_counts("3,1").value(), (Places{3, 1}));
  EXPECT_EQ(parse_slurm_counts("64").value(), (Places{64}));
  for (const char* wrong :
       {"", ",", "2(x", "2(x)", "2(x0)", "0", "-1", "1,", "2 ", "x", "1(x99999999)", "2(x2)3"})
    EXPECT_FALSE(parse_slurm_counts(wrong).ok()) << wrong;
}

// squeue lists all tasks of an array for the id of one of them.
TEST(Cluster, AJobOfAnArrayHasItsOwnNodes) {
  const std::string list = "41 n[1-2]\n42 n3\n40 \n43 (null)\n";
  EXPECT_EQ(nodes_in(list, "42"), "n3");
  EXPECT_EQ(nodes_in(list, "41"), "n[1-2]");
  for (const char* without : {"40", "43", "4", "421", ""}) EXPECT_EQ(nodes_in(list, without), "") << without;
}

TEST(Cluster, LoopbackIsForHostsThatAreOneMachine) {
  const Host a{"a", {}, "127.0.0.1"}, b{"b", {}, "127.0.0.2"}, far{"far", {}, "192.0.2.7"};
  EXPECT_TRUE(check_loopback({a, b}).ok());
  EXPECT_TRUE(check_loopback({far}).ok());
  const auto mixed = check_loopback({far, b});
  ASSERT_FALSE(mixed.ok());
  EXPECT_EQ(mixed.error().code, ErrorCode::kInvalid);
  EXPECT_NE(mixed.error().message.find("host b is 127.0.0.2 here, which is loopback: far cannot reach it"),
            std::string::npos)
      << mixed.error().message;
  EXPECT_EQ(own_address("127.0.0.2", "127.0.0.1").value(), "127.0.0.2");
  EXPECT_EQ(own_address(network_address(), "127.0.0.1").value(), network_address());
  EXPECT_EQ(own_address("127.0.0.1", "192.0.2.7").error().code, ErrorCode::kInvalid);
}

TEST(Cluster, AMissingSchedulerSaysWhatToInstall) {
  const std::string path = ::getenv("PATH");
  ::setenv("PATH", "/nonexistent", 1);
  const auto slurm = slurm_cluster({.workers = 2, .address = "", .job = "1"});
  const auto salloc = salloc_command({}, 2, 0, "tiny", {"true"});
  const auto ssh = ssh_cluster({.hosts = {"node7"}, .options = {}, .workers = 1, .address = ""});
  ::setenv("PATH", path.c_str(), 1);
  for (const std::string& message : {slurm.error().message, salloc.error().message, ssh.error().message})
    EXPECT_NE(message.find("install"), std::string::npos) << message;
  EXPECT_EQ(slurm.error().code, ErrorCode::kNotFound);
}

TEST(Cluster, SshsHostsAreCheckedBeforeAnythingStarts) {
  const auto message = [](const std::vector<std::string>& hosts) {
    return ssh_cluster({.hosts = hosts, .options = {}, .workers = 1, .address = ""}).error().message;
  };
  EXPECT_EQ(message({}), "no hosts are named");
  EXPECT_EQ(message({"-oProxyCommand=x"}), "\"-oProxyCommand=x\" is no host's name");
  EXPECT_EQ(message({"127.0.0.1", "127.0.0.1"}), "host 127.0.0.1 is there twice");
  EXPECT_NE(message({"192.0.2.7", "127.0.0.1"}).find("loopback"), std::string::npos);
  EXPECT_NE(message({"nowhere.invalid"}).find("nowhere.invalid has no IPv4 address"), std::string::npos);
}

// A worker moves where its host is gone: to a spare first, then to where the fewest are.
TEST(HostsLauncher, ReplacesAHostThatIsGone) {
  std::vector<std::string> usable = {"a", "b", "spare"};
  const Host a{"a"}, b{"b"}, spare{"spare"};
  const auto launcher = make_hosts_launcher(
      {.local = {.command = {"sleep", "60"}}, .hosts = {a, b, spare}, .usable = [&] { return usable; }});
  std::vector<std::unique_ptr<WorkerProcess>> workers;
  const auto start = [&](const Host& host, int failed) {
    const Host at = launcher->place(host, failed);
    workers.push_back(launcher->start({"w", at, {}}).value());
    return at.name;
  };
  EXPECT_EQ(start(a, 0), "a");
  EXPECT_EQ(start(b, 0), "b");
  workers.pop_back();
  EXPECT_EQ(start(b, 0), "b");  // its process was lost, not its host
  workers.pop_back();
  EXPECT_EQ(start(b, 1), "spare");  // the host does not answer
  workers.pop_back();
  usable = {"a", "b"};
  EXPECT_EQ(start(spare, 0), "a");  // the scheduler took it away, and b has failed
  usable = {};
  EXPECT_EQ(start(a, 3), "a");  // there is nothing better
}

TEST(HostsLauncher, SaysThatAWorkerIsStopped) {
  const Host a{"a"};
  const auto launcher =
      make_hosts_launcher({.local = {.command = {"sleep", "60"}}, .hosts = {a}, .usable = nullptr});
  const auto worker = launcher->start({"w", a, {}}).value();
  EXPECT_FALSE(worker->stopped());
  ASSERT_EQ(worker->describe().substr(0, 4), "pid ");
  ASSERT_EQ(::kill(std::stoi(worker->describe().substr(4)), SIGSTOP), 0);
  for (const Deadline limit = Deadline::after_ms(20'000); !worker->stopped() && !limit.expired();)
    ::usleep(5000);
  EXPECT_TRUE(worker->stopped());
}

// All pods fail with pod 0, and the run is over when pod 0 says so.
TEST(Kubernetes, TheJobBearsTheLossOfPodZero) {
  const auto manifest = kubernetes_manifest(
      {.name = "tiny", .image = "i", .claim = "home", .pods = 30, .files = {}, .command = {"flywheel"}});
  ASSERT_TRUE(manifest.ok()) << manifest.error().message;
  for (const char* line : {"backoffLimit: 600", "succeededIndexes: \"0\""})
    EXPECT_NE(manifest->find(line), std::string::npos) << *manifest;
}

TEST(Kubernetes, TheStoreComesFromASecretIfThereIsOne) {
  const auto manifest = kubernetes_manifest(
      {.name = "tiny", .image = "i", .claim = "home", .pods = 2, .files = {}, .command = {"flywheel"}});
  ASSERT_TRUE(manifest.ok()) << manifest.error().message;
  for (const char* line : {"name: \"FLYWHEEL_STORE\"", "name: \"flywheel-store\"", "optional: true"})
    EXPECT_NE(manifest->find(line), std::string::npos) << *manifest;
}

// srun sends its environment over the network.
TEST(LocalLauncher, APrefixBringsTheEnvironmentByStdinAlone) {
  const TempFolder folder;
  const auto launcher = make_local_launcher({.command = {"worker"}, .log_folder = folder.path()});
  const Host host{"b", {"sh", "-c", "echo \"[$KEYS] $(cat)\""}};
  auto worker = launcher->start({"w", host, {{"KEYS", "secret"}}}).value();
  for (const Deadline limit = Deadline::after_ms(20'000); !worker->ended() && !limit.expired();)
    ::usleep(5000);
  EXPECT_EQ(worker->last_words(), "[] KEYS=secret");
}

TEST(JoinPoint, IsReadByItsOwnerAlone) {
  const TempFolder folder;
  const std::string path = folder / "launch/x.json";
  const JoinPoint point{"tcp://127.0.0.1:7400", Keys::make().value()};
  {
    const JoinFile file = JoinFile::write(path, point).value();
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
    EXPECT_EQ(read_join_file(path)->keys.client_secret, point.keys.client_secret);
    ASSERT_EQ(::chmod(path.c_str(), 0640), 0);
    EXPECT_EQ(read_join_file(path).error().code, ErrorCode::kDenied);
    ::chmod(path.c_str(), 0600);
  }
  EXPECT_FALSE(path_exists(path));
  for (const char* text : {"", "{", "[]", "{\"version\": 1}", "{\"version\": 2, \"endpoint\": \"x\"}",
                           "{\"version\": 1, \"endpoint\": \"x\", \"keys\": \"short\"}"}) {
    write_file(path, text).value();
    ::chmod(path.c_str(), 0600);
    EXPECT_FALSE(read_join_file(path).ok()) << text;
  }
  for (const char* wrong_type : {"{\"version\": \"1\"}", "{\"version\": 1, \"endpoint\": 5, \"keys\": \"\"}",
                                 "{\"version\": 1, \"endpoint\": \"x\", \"keys\": []}"}) {
    write_file(path, wrong_type).value();
    ::chmod(path.c_str(), 0600);
    EXPECT_EQ(read_join_file(path).error().code, ErrorCode::kCorrupt) << wrong_type;
  }
}

TEST(JoinPoint, ASecretGivesAllTheSameKeys) {
  const std::string secret(32, 's');
  const Keys one = keys_from_secret(secret).value(), two = keys_from_secret(secret).value();
  EXPECT_EQ(one.to_text(), two.to_text());
  EXPECT_NE(one.client_secret, one.server_secret);
  EXPECT_NE(keys_from_secret(secret + "x")->to_text(), one.to_text());
  EXPECT_EQ(keys_from_secret("short").error().code, ErrorCode::kInvalid);
}

TEST(JoinPoint, ASecretThatEverybodyMayReadIsNone) {
  const TempFolder folder;
  const std::string path = folder / "secret";
  write_file(path, std::string(32, 's') + "\n").value();
  ASSERT_EQ(::chmod(path.c_str(), 0644), 0);
  const auto open = keys_from_secret_file(path);
  ASSERT_FALSE(open.ok());
  EXPECT_EQ(open.error().code, ErrorCode::kDenied);
  EXPECT_NE(open.error().message.find("chmod 600 " + path), std::string::npos) << open.error().message;
  for (const mode_t mode : {0600, 0440}) {
    ASSERT_EQ(::chmod(path.c_str(), mode), 0);
    EXPECT_EQ(keys_from_secret_file(path)->to_text(), keys_from_secret(std::string(32, 's'))->to_text());
  }
}

class SeatsTest : public ::testing::Test {
 protected:
  std::shared_ptr<Seats> open(int seats) {
    return Seats::open(
               {.seats = seats, .own = 0, .address = "127.0.0.1", .join_file = path_, .empty_ms = 300})
        .value();
  }
  SeatOptions seat(int index, int seats, int64_t patience_ms = 20'000) const {
    return {.seat = index,
            .seats = seats,
            .find = [path = path_] { return read_join_file(path); },
            .patience_ms = patience_ms,
            .command = {"sh", "-c", "echo $WORDS; exit $CODE"}};
  }
  const TempFolder folder_;
  const std::string path_ = folder_ / "join.json";
};

// Threads in place of processes: what they start are real ones.
TEST_F(SeatsTest, StartWorkersAndEndWithTheProgramsCode) {
  auto seats = open(2);
  Result<int> code = -1;
  std::thread one([&] { code = run_seat(seat(1, 2)); });
  const auto hosts = seats->wait_for_all(Deadline::after_ms(20'000)).value();
  ASSERT_EQ(hosts.size(), 2u);
  EXPECT_EQ(hosts[1].seat, 1);
  EXPECT_EQ(hosts[1].address, "127.0.0.1");
  const auto launcher = seats->launcher({.command = {"true"}, .log_folder = folder_ / "logs"});
  auto worker = launcher->start({"train/1", hosts[1], {{"CODE", "7"}, {"WORDS", "no=room"}}}).value();
  for (const Deadline limit = Deadline::after_ms(20'000); !worker->ended() && !limit.expired();)
    ::usleep(5000);
  ASSERT_TRUE(worker->ended().has_value());
  EXPECT_EQ(worker->ended()->exit_code, 7);
  EXPECT_EQ(worker->last_words(), "no=room");
  seats->end(5);
  one.join();
  EXPECT_EQ(code.value(), 5);
}

TEST_F(SeatsTest, ASeatThatWasAwayIsToldTheEnd) {
  auto seats = open(2);
  seats->end(5);
  EXPECT_EQ(run_seat(seat(1, 2)).value(), 5);
}

TEST_F(SeatsTest, AnEmptySeatIsNamed) {
  const auto error = open(3)->wait_for_all(Deadline::after_ms(100)).error();
  EXPECT_EQ(error.code, ErrorCode::kDeadline);
  EXPECT_NE(error.message.find("did not come in time: 1, 2"), std::string::npos) << error.message;
}

TEST_F(SeatsTest, ARankOfAnotherSizeIsTurnedAwayWithTheReason) {
  auto seats = open(2);
  const auto code = run_seat(seat(1, 3, 500));
  ASSERT_FALSE(code.ok());
  EXPECT_EQ(code.error().code, ErrorCode::kDenied);
  EXPECT_NE(code.error().message.find("it is rank 1 of 3, and here are 2"), std::string::npos)
      << code.error().message;
}

TEST_F(SeatsTest, WithoutAProgramASeatSaysWhatItLookedFor) {
  const auto code = run_seat(seat(1, 2, 300));
  ASSERT_FALSE(code.ok());
  EXPECT_EQ(code.error().code, ErrorCode::kDeadline);
  EXPECT_NE(code.error().message.find("join.json"), std::string::npos) << code.error().message;
}

// The file of a program that is gone leads nowhere; that of the next one does.
TEST_F(SeatsTest, AnOldJoinFileIsOvercome) {
  { std::ignore = JoinFile::write(path_, {"tcp://127.0.0.1:9", Keys::make().value()}); }
  const JoinFile old = JoinFile::write(path_, {"tcp://127.0.0.1:9", Keys::make().value()}).value();
  Result<int> code = -1;
  std::thread one([&] { code = run_seat(seat(1, 2)); });
  ::usleep(200'000);
  auto seats = open(2);
  EXPECT_TRUE(seats->wait_for_all(Deadline::after_ms(20'000)).ok());
  seats->end(0);
  one.join();
  EXPECT_EQ(code.value(), 0);
}

// A worker for a seat that stays empty ends, so that it can be placed at another.
TEST_F(SeatsTest, AWorkerMovesToAnotherSeat) {
  auto seats = open(2);
  const auto launcher = seats->launcher({.command = {"sleep", "60"}, .log_folder = folder_ / "logs"});
  const Host gone{"b", {}, "127.0.0.1", 1};
  EXPECT_EQ(launcher->place(gone, 0).seat, 1);
  auto worker = launcher->start({"train/1", gone, {}}).value();
  for (const Deadline limit = Deadline::after_ms(10'000); !worker->ended() && !limit.expired();)
    ::usleep(5000);
  ASSERT_TRUE(worker->ended().has_value());
  EXPECT_NE(worker->last_words().find("rank 1 has not come back"), std::string::npos) << worker->last_words();
  EXPECT_EQ(launcher->place(gone, 1).seat, 0);
}

}  // namespace
}  // namespace flywheel::runtime
