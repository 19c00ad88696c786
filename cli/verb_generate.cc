// flywheel generate MODEL -p TEXT: text that goes on from a prompt, on stdout as it comes.
#include <csignal>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "base/progress.h"
#include "cli.h"
#include "engine_session.h"
#include "utf8.h"

namespace flywheel::cli {
namespace {

int verb_generate(const std::vector<std::string>& args) {
  App app{"Generate text that goes on from a prompt."};
  std::string prompt;
  bool json = false;
  SessionOptions options;
  app.add_option("model", options.engine.model, "An artifact's name, a .gguf file or a Hugging Face folder")
      ->required();
  app.add_option("-p,--prompt", prompt, "What to go on from; - reads it from stdin");
  app.add_flag("--json", json, "One JSON object with text and figures instead of text");
  add_session_options(app, options);
  app.footer(
      "  flywheel generate smollm2 -p 'The capital of France is' --max-tokens 20\n"
      "  flywheel generate smollm2 -p 'Once upon a time' -n 60 --temperature 0.8 --seed 7\n"
      "  echo 'Once upon a time' | flywheel generate ./model.gguf -p - --json\n");
  if (const auto exit = parse(app, "generate", args)) return *exit;
  check(options);
  if (prompt == "-") prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  check_utf8("--prompt", prompt);

  Session session(options);
  const std::vector<int32_t> ids = session.encode(prompt);
  if (ids.empty()) throw UserError("--prompt", "is empty, and this model has no token that begins a text");
  const Answer answer = session.answer(ids, [&](const std::string& text) {
    if (json) return;
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  });
  if (json) {
    std::printf("%s\n", to_json(answer).dump().c_str());
  } else {
    std::printf("\n");
    std::fflush(stdout);  // where both go to one place, the text ends before the figures
    std::fprintf(stderr, "%s\n", figures(answer).c_str());
  }
  if (answer.finish == engine::FinishReason::kError)
    throw UserError("flywheel generate", answer.error, "", ErrorCode::kUnavailable);
  return 0;
}

REGISTER_VERB(generate, "Text that goes on from a prompt", verb_generate);

}  // namespace
}  // namespace flywheel::cli
