// Bodies of HTTP requests: a request, or the ApiError that the client gets.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "fuzzer.h"
#include "serve/openai_request.h"

namespace {

std::vector<std::string> seeds() {
  return {
      R"({"model":"m","messages":[{"role":"developer","content":"s"},{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":null,"tool_calls":[]}],"n":1,"stop":["a"],"logit_bias":{"1":2},"seed":3,"max_completion_tokens":7})",
      R"({"model":"m","messages":[{"role":"user","name":"u","content":[{"type":"text","text":"a"},{"type":5}]},{"role":"tool","tool_call_id":"1","content":"r"}],"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"none","response_format":{"type":"text"},"modalities":["text"],"logprobs":true,"top_logprobs":2,"chat_template_kwargs":{"a":1},"add_generation_prompt":false})",
      R"({"model":"m","prompt":["a","b"],"max_tokens":5,"temperature":0.5,"top_p":1,"stop":"x","seed":-1,"n":2,"stream":true,"stream_options":{"include_usage":true},"logprobs":3,"top_k":null,"echo":true,"min_p":0.1,"stop_token_ids":[1]})",
      R"({"model":"m","prompt":[[1,2],[3]],"frequency_penalty":-2,"presence_penalty":2,"ignore_eos":true})"};
}

void run(std::string_view input) {
  using namespace flywheel::serve;
  try {
    CHECK(parse_chat_request(input).messages.is_array(), "no messages");
  } catch (const ApiError& error) {
    CHECK(error.status == 400, "status {}", error.status);
  }
  try {
    CHECK(!parse_completion_request(input).prompts.empty(), "no prompts");
  } catch (const ApiError& error) {
    CHECK(error.status == 400, "status {}", error.status);
  }
}

const FuzzerRegistration registration("openai_request", seeds, run);

}  // namespace
