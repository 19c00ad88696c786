#include "serve/openai_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/philox.h"

namespace flywheel::serve {
namespace {

// "field: message" of the refusal.
template <typename Parse>
std::string refusal(Parse parse, const std::string& body) {
  try {
    parse(body);
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status, 400);
    return error.param + ": " + error.what();
  }
  return "accepted";
}

TEST(OpenaiRequest, ReadsACompletion) {
  const auto r = parse_completion_request(
      R"({"model":"m","prompt":["a","b"],"max_tokens":5,"temperature":0.5,"logit_bias":{"42":-100},"stop":"x",
          "seed":-1,"n":2,"stream":true,"stream_options":{"include_usage":true},"logprobs":3,"top_k":null})");
  EXPECT_EQ(r.prompts.size(), 2u);
  EXPECT_EQ(r.prompts[1].text, "b");
  EXPECT_EQ(r.generation.max_tokens, 5);
  EXPECT_EQ(r.generation.logit_bias.at(42), -100);
  EXPECT_EQ(r.generation.stop, std::vector<std::string>{"x"});
  EXPECT_TRUE(r.generation.include_usage);
  EXPECT_EQ(r.generation.top_logprobs, 3);
  EXPECT_EQ(parse_completion_request(R"({"model":"m","prompt":[[1,2],[3]]})").prompts[0].tokens,
            (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(parse_completion_request(R"({"model":"m","prompt":[1,2]})").prompts.size(), 1u);
}

TEST(OpenaiRequest, ReadsAChat) {
  const auto r = parse_chat_request(
      R"({"model":"m","messages":[{"role":"developer","content":"s"},
          {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],"max_completion_tokens":7})");
  EXPECT_EQ(r.messages[0]["role"], "system");
  EXPECT_EQ(r.messages[1]["content"], "ab");
  EXPECT_EQ(r.generation.max_tokens, 7);
}

TEST(OpenaiRequest, NamesTheFieldThatIsWrong) {
  const auto completion = [](const std::string& fields) {
    return refusal(parse_completion_request, R"({"model":"m","prompt":"p")" + fields + "}");
  };
  EXPECT_EQ(completion(R"(,"temperature":3)"), "temperature: 'temperature' must be from 0 to 2, not 3");
  EXPECT_EQ(completion(R"(,"temperature":"hot")"), "temperature: 'temperature' must be a number");
  EXPECT_EQ(completion(R"(,"max_tokens":-1)"),
            "max_tokens: 'max_tokens' must be from 1 to 2147483647, not -1");
  EXPECT_EQ(completion(R"(,"n":1.5)"), "n: 'n' must be an integer");
  EXPECT_EQ(completion(R"(,"temprature":1)"),
            "temprature: Unrecognized request argument: temprature; did you mean temperature?");
  EXPECT_EQ(completion(R"(,"suffix":"x")"), "suffix: 'suffix' is not supported by this server");
  EXPECT_EQ(completion(R"(,"logit_bias":{"x":1})"), "logit_bias: 'logit_bias': \"x\" is not a token id");
  EXPECT_EQ(completion(R"(,"stop":[1])"),
            "stop: 'stop' must be a string that is not empty, or a list of such");
  EXPECT_EQ(completion(R"(,"stream_options":{})"),
            "stream_options: 'stream_options' is allowed only with stream: true");
  EXPECT_EQ(completion(R"(,"seed":18446744073709551615)"), "accepted");
  const auto chat = [](const std::string& messages) {
    return refusal(parse_chat_request, R"({"model":"m","messages":)" + messages + "}");
  };
  EXPECT_THAT(chat("[]"), testing::StartsWith("messages:"));
  EXPECT_THAT(chat(R"([{"role":"king","content":"x"}])"), testing::StartsWith("messages[0].role:"));
  EXPECT_THAT(chat(R"([{"role":"user"}])"), testing::StartsWith("messages[0].content:"));
  EXPECT_THAT(chat(R"([{"role":"user","content":[{"type":"image_url"}]}])"),
              testing::StartsWith("messages[0].content:"));
  EXPECT_THAT(refusal(parse_chat_request, R"({"messages":[]})"), testing::StartsWith("model:"));
  EXPECT_THAT(refusal(parse_chat_request, "{"), testing::HasSubstr("not JSON"));
  EXPECT_THAT(refusal(parse_chat_request, std::string(100'000, '[')), testing::HasSubstr("nested deeper"));
}

// Any bytes: an ApiError or a request, nothing else.
TEST(OpenaiRequest, SurvivesMutations) {
  const std::string seed_text =
      R"({"model":"m","messages":[{"role":"user","content":"hi"}],"n":1,"stop":["a"],"logit_bias":{"1":2},"seed":3})";
  Philox rng(2026, 11);
  for (int i = 0; i < 20'000; ++i) {
    std::string text = seed_text;
    for (uint64_t k = 0, edits = 1 + rng.below(4); k < edits; ++k) {
      const size_t at = rng.below(text.size());
      switch (rng.below(3)) {
        case 0:
          text[at] = static_cast<char>(rng.below(256));
          break;
        case 1:
          text.erase(at, rng.below(8));
          break;
        default:
          text.insert(at, text.substr(rng.below(text.size()), rng.below(12)));
      }
      if (text.empty()) text = "{";
    }
    try {
      parse_chat_request(text);
    } catch (const ApiError&) {
    }
    try {
      parse_completion_request(text);
    } catch (const ApiError&) {
    }
  }
}

}  // namespace
}  // namespace flywheel::serve
