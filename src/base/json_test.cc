#include "base/json.h"

#include <gtest/gtest.h>

namespace flywheel {
namespace {

TEST(Json, WhateverTheTextNothingIsThrown) {
  EXPECT_EQ(parse_json(R"({"a": [1, 2.5, null]})").value()["a"][1], 2.5);
  for (const char* bad :
       {"", "{", "[1,]", "\"\xff\"", "nan", "1e999", "[-1E+4000]", "{\"a\": 124E2222}", "\"\\ud800\""}) {
    const auto json = parse_json(bad);
    ASSERT_FALSE(json.ok()) << bad;
    EXPECT_EQ(json.error().code, ErrorCode::kInvalid);
    EXPECT_FALSE(parse_ordered_json(bad).ok()) << bad;
  }
  EXPECT_NE(parse_json("[1e999]").error().message.find("1e999"), std::string::npos);
}

TEST(Json, DepthIsLimited) {
  EXPECT_TRUE(parse_json(std::string(8, '[') + std::string(8, ']'), 8).ok());
  EXPECT_FALSE(parse_json(std::string(9, '[') + std::string(9, ']'), 8).ok());
  EXPECT_FALSE(parse_json(std::string(1 << 20, '[')).ok());
  EXPECT_TRUE(parse_json("\"[[[[\\\"[[[[\"", 1).ok());
}

}  // namespace
}  // namespace flywheel
