#include "base/result.h"

#include <gtest/gtest.h>

namespace flywheel {
namespace {

template <typename T>
UserError thrown_by(const Result<T>& result, const std::string& where) {
  try {
    (void)Result<T>(result).value_or_throw(where);
  } catch (const UserError& error) {
    return error;
  }
  return {"nothing", "was thrown"};
}

TEST(Result, WhatIsThrownOnKeepsItsCode) {
  const UserError full =
      thrown_by(Result<int>(make_error(ErrorCode::kIo, "cannot write out/x: No space left")), "out");
  EXPECT_STREQ(full.what(), "out: cannot write out/x: No space left");
  EXPECT_EQ(full.where(), "out");
  EXPECT_EQ(full.code(), ErrorCode::kIo);
  const Result<void> none = make_error(ErrorCode::kNotFound, "no run tiny-8");
  EXPECT_EQ(thrown_by(none, "").code(), ErrorCode::kNotFound);
  EXPECT_STREQ(thrown_by(none, "").what(), "no run tiny-8");
  EXPECT_EQ(UserError("seed", "must be 0 or more").code(), ErrorCode::kInvalid);
  EXPECT_STREQ(UserError("--resume", none.error(), "look again").what(),
               "--resume: no run tiny-8; look again");
}

TEST(Result, FailuresOfTheMachineAreNoMistakesOfTheUser) {
  for (const ErrorCode code :
       {ErrorCode::kIo, ErrorCode::kUnavailable, ErrorCode::kCorrupt, ErrorCode::kDeadline, ErrorCode::kFull,
        ErrorCode::kPeerLost, ErrorCode::kAborted, ErrorCode::kCancelled})
    EXPECT_TRUE(is_failure(code)) << error_code_name(code);
  for (const ErrorCode code :
       {ErrorCode::kInvalid, ErrorCode::kNotFound, ErrorCode::kExists, ErrorCode::kDenied})
    EXPECT_FALSE(is_failure(code)) << error_code_name(code);
}

}  // namespace
}  // namespace flywheel
