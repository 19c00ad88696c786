#include "store/params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace flywheel::store {
namespace {

using Params = std::map<std::string, std::string>;

TEST(Params, EveryValueUnderItsKey) {
  const Params params = flatten_params(R"(
name: tiny
optimizer:
  lr: 0.1
  betas: [0.9, 0.95]
mesh:
  hosts:
    - {name: a, prefix: [ssh, a]}
    - name: b
  none: []
  unset: ~
group: {}
)")
                            .value();
  EXPECT_EQ(params, (Params{{"name", "tiny"},
                            {"optimizer.lr", "0.1"},
                            {"optimizer.betas", "[0.9, 0.95]"},
                            {"mesh.hosts[0].name", "a"},
                            {"mesh.hosts[0].prefix", "[ssh, a]"},
                            {"mesh.hosts[1].name", "b"},
                            {"mesh.none", "[]"},
                            {"mesh.unset", "null"}}));
}

TEST(Params, JsonIsYamlAndNoConfigHasNone) {
  EXPECT_EQ(flatten_params(R"({"a": {"b": true}})").value(), (Params{{"a.b", "true"}}));
  EXPECT_EQ(flatten_params("").value(), Params{});
}

TEST(Params, WhatIsNoYamlIsRefusedWithItsLine) {
  const auto broken = flatten_params("a: 1\nb: [1,\n");
  EXPECT_EQ(broken.error().code, ErrorCode::kInvalid);
  EXPECT_THAT(broken.error().message, testing::HasSubstr("at line"));
}

}  // namespace
}  // namespace flywheel::store
