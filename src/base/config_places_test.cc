#include "base/config_places.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace flywheel {
namespace {

struct Host {
  std::string name;
  int64_t port = 1;
  template <typename V>
  void fields(V& v) {
    v("name", name), v("port", port);
  }
};
struct Mesh {
  int64_t data = 1, threads = 0;
  std::vector<Host> hosts;
  template <typename V>
  void fields(V& v) {
    v("data", data), v("threads", threads), v("hosts", hosts);
  }
};
struct Config {
  int64_t steps = 1;
  Mesh mesh;
  std::optional<double> decay;
  template <typename V>
  void fields(V& v) {
    v("steps", steps), v("mesh", mesh), v("decay", decay);
  }
};

constexpr const char* kText =
    "steps: 0\n"          // 1
    "\n"                  // 2
    "mesh:\n"             // 3
    "  data: 0\n"         // 4
    "  hosts:\n"          // 5
    "    - name: a\n"     // 6
    "      port: -1\n"    // 7
    "    - {name: b}\n";  // 8

// What a user reads where a check throws `error`.
std::string said(const ConfigPlaces& places, const UserError& error) {
  try {
    places.blame([&] { throw UserError(error); });
  } catch (const UserError& placed) {
    return placed.what();
  }
  return "nothing";
}

TEST(ConfigPlaces, NamesFileAndLine) {
  ConfigPlaces places;
  const auto config = places.parse<Config>("my.yaml", kText);
  EXPECT_EQ(config.mesh.hosts[0].port, -1);
  EXPECT_EQ(said(places, {"steps", "must be at least 1"}), "my.yaml:1: steps: must be at least 1");
  EXPECT_EQ(said(places, {"mesh.data", "is 0", "set 1"}), "my.yaml:4: mesh.data: is 0; set 1");
  EXPECT_EQ(said(places, {"mesh", "too large"}), "my.yaml:3: mesh: too large");
  EXPECT_EQ(said(places, {"mesh.hosts[0].port", "x"}), "my.yaml:7: mesh.hosts[0].port: x");
  EXPECT_EQ(said(places, {"mesh.hosts[1]", "x"}), "my.yaml:8: mesh.hosts[1]: x");
}

TEST(ConfigPlaces, ForWhatIsNotSetNamesTheGroupOrTheFile) {
  ConfigPlaces places;
  places.parse<Config>("my.yaml", kText);
  EXPECT_EQ(said(places, {"mesh.threads", "x"}), "my.yaml:3: mesh.threads: x");
  EXPECT_EQ(said(places, {"mesh.hosts[1].port", "x"}), "my.yaml:8: mesh.hosts[1].port: x");
  EXPECT_EQ(said(places, {"decay", "x"}), "my.yaml: decay: x");
}

TEST(ConfigPlaces, BlamesTheFlagThatSetAValue) {
  ConfigPlaces places;
  places.parse<Config>("my.yaml", kText, {"steps=-1", "mesh.hosts=[{name: c}]"});
  EXPECT_EQ(said(places, {"steps", "x"}), "--set steps=-1: steps: x");
  EXPECT_EQ(said(places, {"mesh.hosts[0].name", "x"}), "--set mesh.hosts=[{name: c}]: mesh.hosts[0].name: x");
  EXPECT_EQ(said(places, {"mesh.data", "x"}), "my.yaml:4: mesh.data: x");
  places.set("mesh.data", "--data");
  EXPECT_EQ(said(places, {"mesh.data", "x"}), "--data: mesh.data: x");
}

TEST(ConfigPlaces, WithoutAFileOnlyFlagsAreNamed) {
  ConfigPlaces places;
  places.parse<Config>("", "", {"mesh.data=0"});
  EXPECT_EQ(said(places, {"mesh.data", "x"}), "--set mesh.data=0: mesh.data: x");
  EXPECT_EQ(said(places, {"mesh.threads", "x"}), "mesh.threads: x");  // not that flag's fault
  EXPECT_EQ(said(places, {"steps", "x"}), "steps: x");
}

TEST(ConfigPlaces, LeavesOtherErrorsAndKeepsCodes) {
  ConfigPlaces places;
  places.parse<Config>("my.yaml", kText);
  EXPECT_EQ(said(places, {"--resume", "is finished"}), "--resume: is finished");
  EXPECT_EQ(said(places, {"my.yaml:3", "x"}), "my.yaml:3: x");
  EXPECT_EQ(said(places, {"", "the disk is full"}), "the disk is full");
  EXPECT_EQ(said(places, {"", "mesh.data: does not divide"}), "my.yaml:4: mesh.data: does not divide");
  EXPECT_EQ(places.placed({"steps", "x", "", ErrorCode::kIo}).code(), ErrorCode::kIo);
  EXPECT_EQ(places.blame([] { return 7; }), 7);
}

}  // namespace
}  // namespace flywheel
