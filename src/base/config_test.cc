#include "base/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace flywheel {
namespace {

struct Inner {
  double lr = 3e-4;
  std::vector<int> sizes = {1, 2};
  template <typename V>
  void fields(V& v) {
    v("lr", lr), v("sizes", sizes);
  }
};
struct Outer {
  std::string name = "x";
  Inner optimizer;
  template <typename V>
  void fields(V& v) {
    v("name", name), v("optimizer", optimizer);
  }
};

TEST(Config, ReadsOverridesAndNamesTheNearestKey) {
  const auto config =
      parse_config<Outer>("t.yaml", "name: hello\noptimizer:\n  lr: 1e-3\n", {"optimizer.sizes=[4]"});
  EXPECT_EQ(config.name, "hello");
  EXPECT_EQ(config.optimizer.sizes, std::vector<int>{4});
  try {
    parse_config<Outer>("t.yaml", "name: a\noptimizer:\n  lrr: 1\n");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), "t.yaml:3: optimizer.lrr: no such key; did you mean optimizer.lr?");
  }
  EXPECT_EQ(parse_config<Outer>("d", dump_config(config)).optimizer.lr, 1e-3);
}

TEST(Config, WrongTypesNameLineAndKey) {
  const auto message = [](const char* text, const std::vector<std::string>& set = {}) -> std::string {
    try {
      parse_config<Outer>("t.yaml", text, set);
    } catch (const UserError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message("name: a\noptimizer:\n  lr: fast\n"),
            "t.yaml:3: optimizer.lr must be a number, not \"fast\"");
  EXPECT_EQ(message("optimizer: 3\n"), "t.yaml:1: optimizer must be a mapping of keys, not \"3\"");
  EXPECT_EQ(message("optimizer: {sizes: [1, x]}"),
            "t.yaml:1: optimizer.sizes[1] must be an integer, not \"x\"");
  EXPECT_EQ(message("name: a\nname: b\n"), "t.yaml:2: name: set twice; leave one of them");
  EXPECT_THAT(message("a: [1\n"), testing::HasSubstr("not YAML"));
  EXPECT_THAT(message("", {"name"}), testing::HasSubstr("KEY=VALUE"));
  EXPECT_THAT(message("", {"name.deep.er=1"}), testing::HasSubstr("must be a text"));
  EXPECT_EQ(message("", {"optimizer.lr=1e-2"}), "accepted");
}

TEST(Config, NearestName) {
  EXPECT_EQ(nearest_name("stag", {"stage", "size"}), "stage");
  EXPECT_EQ(nearest_name("zzzzzz", {"stage", "size"}), "");
}

}  // namespace
}  // namespace flywheel
