#include "serve/openai_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "base/mutation_for_tests.h"
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
  EXPECT_THAT(refusal(parse_chat_request, std::string(100'000, '[')),
              testing::HasSubstr("the request body is JSON that is nested deeper"));
}

TEST(OpenaiRequest, TopPOfZeroIsTaken) {
  EXPECT_EQ(parse_completion_request(R"({"model":"m","prompt":"p","top_p":0})").generation.top_p, 0);
}

TEST(OpenaiRequest, PartsOfContentAreChecked) {
  for (const char* parts :
       {R"({"type":5,"text":"x"})", R"({"type":null,"text":"x"})", R"({"type":["text"],"text":"x"})",
        R"({"type":"text","text":5})", R"({"type":"text"})", R"({"text":"x"})", "5", "null", "[]"}) {
    EXPECT_THAT(
        refusal(parse_chat_request,
                std::string(R"({"model":"m","messages":[{"role":"user","content":[)") + parts + "]}]}"),
        testing::StartsWith("messages[0].content:"))
        << parts;
  }
}

// Every field that there is.
const std::vector<std::string> kWholeRequests = {
    R"({"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","name":"u","content":[{"type":"text","text":"hi"}]},
        {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},
        {"role":"tool","tool_call_id":"1","content":"r"}],"n":1,"stop":["a","b"],"logit_bias":{"1":2},"seed":3,
        "temperature":1,"top_p":0.5,"top_k":4,"min_p":0.1,"max_completion_tokens":7,"max_tokens":8,"logprobs":true,
        "top_logprobs":2,"stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false},
        "chat_template_kwargs":{"a":[1]},"add_generation_prompt":true,"user":"u","metadata":{"a":"b"}})",
    R"({"model":"m","messages":[{"role":"user","content":"x"}],"tools":[],"tool_choice":"none","parallel_tool_calls":true,
        "functions":[],"function_call":"none","response_format":{"type":"text"},"modalities":["text"],"audio":null})",
    R"({"model":"m","prompt":["a","b"],"max_tokens":5,"echo":true,"logprobs":null,"best_of":2,"n":2,"suffix":"",
        "frequency_penalty":-2,"presence_penalty":2,"repetition_penalty":1.5,"ignore_eos":true,"stop_token_ids":[1,2]})",
    R"({"model":"m","prompt":[[1,2],[3]],"stop":"x"})"};

TEST(OpenaiRequest, NoTokenAtAllIsAskedForWithEchoAlone) {
  const CompletionRequest scored =
      parse_completion_request(R"({"model":"m","prompt":"a","echo":true,"max_tokens":0,"logprobs":1})");
  EXPECT_TRUE(scored.echo);
  EXPECT_EQ(scored.generation.max_tokens, 0);
  EXPECT_TRUE(scored.generation.logprobs);
  try {
    parse_completion_request(R"({"model":"m","prompt":"a","max_tokens":0})");
    FAIL();
  } catch (const ApiError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("'max_tokens' must be from 1"));
  }
}

TEST(OpenaiRequest, ANulThatAClientSentCutsNoMessage) {
  const std::string name("a\0b", 3);
  EXPECT_THAT(ApiError(404, "no model `" + name + "`").body(),
              testing::HasSubstr(R"("no model `a\u0000b`")"));
}

// An ApiError or a request, nothing else; the refused field is named.
void expect_answer(const std::string& body) {
  for (const bool chat : {true, false}) {
    try {
      chat ? (void)parse_chat_request(body) : (void)parse_completion_request(body);
    } catch (const ApiError& error) {
      EXPECT_EQ(error.status, 400) << body;
    } catch (const std::exception& error) {
      FAIL() << error.what() << " of " << body;
    }
  }
}

TEST(OpenaiRequest, AnyValueMayStandAnywhere) {
  const auto others = OrderedJson::parse(
      R"([null, true, 5, -1, 1.5, 1e300, 18446744073709551615, "", "text", [], {}, [1], [null], ["text"], {"a": 1}, [[]], [{}]])");
  for (const std::string& seed : kWholeRequests) {
    const auto flat = OrderedJson::parse(seed).flatten();
    std::set<std::string> places;  // each value, and each list and object that holds one
    for (const auto& [path, value] : flat.items()) {
      for (size_t end = path.size(); end != std::string::npos && end > 0; end = path.rfind('/', end - 1))
        places.insert(path.substr(0, end));
    }
    EXPECT_GT(places.size(), 3u);
    for (const std::string& place : places) {
      for (const auto& other : others) {
        OrderedJson changed = OrderedJson::parse(seed);
        changed[OrderedJson::json_pointer(place)] = other;
        expect_answer(changed.dump());
      }
    }
  }
}

TEST(OpenaiRequest, SurvivesMutations) {
  Philox rng(2026, 11);
  for (int i = 0; i < 20'000; ++i) {
    std::string text = kWholeRequests[rng.below(kWholeRequests.size())];
    mutate(text, rng, {.alphabet = "{}[]:,\"0-1.e", .most_edits = 4, .most_inserted = 12, .most_erased = 8});
    expect_answer(text);
  }
}

}  // namespace
}  // namespace flywheel::serve
