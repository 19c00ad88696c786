// One model and one answer at a time, for the verbs that talk with a person: chat and generate.
//
// Threads: the caller's; tokens come from the engine's thread through a queue. Ctrl-C ends the answer, not
// the program. Errors: UserError when the model cannot be opened or the request is refused.
//
//   Session session(options);
//   Answer answer = session.answer(session.encode("Once"), [](const std::string& text) { ... });
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/engine.h"
#include "model/tokenizer.h"

namespace flywheel::cli {

struct SessionOptions {
  engine::EngineConfig engine;
  engine::SamplingParams sampling;
  int64_t max_tokens = 0;  // 0: as many as the context holds
  std::vector<std::string> stop;
  uint64_t seed = 0;
  bool has_seed = false;
};

// --temperature, --max-tokens and so on.
void add_session_options(CLI::App& app, SessionOptions& options);

// UserError for a sampling value out of its range. Session begins with it, before the model is loaded.
void check(const SessionOptions& options);

struct Answer {
  std::string text;
  engine::FinishReason finish = engine::FinishReason::kStop;
  std::string error;
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  double first_token_seconds = 0, seconds = 0;
};

// "12 tokens at 130.1 tokens/s, first after 0.08 s (prompt of 5)"
std::string figures(const Answer& answer);
Json to_json(const Answer& answer);

class Session {
 public:
  explicit Session(const SessionOptions& options);

  std::vector<int32_t> encode(const std::string& text) const;
  const engine::Engine& engine() const { return *engine_; }
  // Returns when the answer has ended, also by Ctrl-C.
  Answer answer(const std::vector<int32_t>& prompt, const std::function<void(const std::string&)>& on_text);

 private:
  SessionOptions options_;
  std::unique_ptr<engine::Engine> engine_;
};

}  // namespace flywheel::cli
