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

TEST(Json, TextsOfAnotherTypeAreNone) {
  const Json json = {{"text", "a"}, {"number", 5}, {"list", {1, 2}}};
  EXPECT_EQ(text_of(json, "text"), "a");
  for (const char* none : {"number", "list", "missing"}) EXPECT_EQ(text_of(json, none), "") << none;
  for (const char* no_object : {"[]", "null", "\"text\"", "7"})
    EXPECT_EQ(text_of(parse_json(no_object).value(), "text"), "") << no_object;
}

TEST(Json, DepthIsLimited) {
  EXPECT_TRUE(parse_json(std::string(8, '[') + std::string(8, ']'), 8).ok());
  EXPECT_FALSE(parse_json(std::string(9, '[') + std::string(9, ']'), 8).ok());
  EXPECT_FALSE(parse_json(std::string(1 << 20, '[')).ok());
  EXPECT_TRUE(parse_json("\"[[[[\\\"[[[[\"", 1).ok());
}

}  // namespace
}  // namespace flywheel
