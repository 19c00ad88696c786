// flywheel chat MODEL: a conversation, line by line, answers as they come.
#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "base/env.h"
#include "cli.h"
#include "engine_session.h"
#include "model/chat_template.h"
#include "utf8.h"

namespace flywheel::cli {
namespace {

constexpr const char* kCommands =
    "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer.";

// The conversation so far, and how it becomes a prompt.
class Conversation {
 public:
  Conversation(const Session& session, const std::string& system) : session_(session) {
    const model::Tokenizer& tokenizer = session.engine().tokenizer();
    const std::string& name = session.engine().model().name;
    if (tokenizer.chat_template().empty()) {
      throw UserError(name, "has no chat template: it was not made for conversations",
                      "flywheel generate " + name + " -p TEXT goes on from a text");
    }
    template_ = model::ChatTemplate::parse(tokenizer.chat_template()).value_or_throw(name);
    if (!system.empty()) messages_.push_back({{"role", "system"}, {"content", system}});
    first_turn_ = messages_.size();
    for (const auto& [key, id] : {std::pair{"bos_token", tokenizer.bos()}, {"eos_token", tokenizer.eos()}}) {
      if (id) options_.extra[key] = tokenizer.token(*id);
    }
  }

  void add(const char* role, const std::string& content) {
    messages_.push_back({{"role", role}, {"content", content}});
  }
  void clear() {
    messages_.erase(messages_.begin() + static_cast<std::ptrdiff_t>(first_turn_), messages_.end());
  }
  void drop_question() { messages_.erase(messages_.end() - 1); }

  // The tokens to go on from. Where the context is too short, the oldest turns are forgotten first; `forgot`
  // says how many.
  std::vector<int32_t> prompt(int64_t room_tokens, int& forgot) {
    for (forgot = 0;; ++forgot) {
      options_.deadline = Deadline::after_ms(10'000);
      const std::string text = template_->render(messages_, options_).value_or_throw("chat template");
      // The template writes the special tokens itself.
      std::vector<int32_t> ids = session_.engine().tokenizer().encode(text, {.add_special = false});
      if (static_cast<int64_t>(ids.size()) + room_tokens <= session_.engine().max_context_tokens())
        return ids;
      if (messages_.size() < first_turn_ + 3) {
        throw UserError("", fmt::format("this is {} tokens; the model's context holds {}", ids.size(),
                                        session_.engine().max_context_tokens()));
      }
      const auto oldest = messages_.begin() + static_cast<std::ptrdiff_t>(first_turn_);
      messages_.erase(oldest, oldest + 2);
    }
  }

 private:
  const Session& session_;
  std::optional<model::ChatTemplate> template_;
  model::ChatOptions options_;
  OrderedJson messages_ = OrderedJson::array();
  size_t first_turn_ = 0;  // index of the first message that may be forgotten
};

// One question and its answer. False: the question was refused, and is not part of the conversation.
bool turn(Session& session, Conversation& conversation, const std::string& question, int64_t room_tokens,
          bool json) {
  conversation.add("user", question);
  std::vector<int32_t> prompt;
  try {
    check_utf8("the question", question);
    int forgot = 0;
    prompt = conversation.prompt(room_tokens, forgot);
    if (forgot == 1) std::fprintf(stderr, "(the context is full: the oldest turn is forgotten)\n");
    if (forgot > 1)
      std::fprintf(stderr, "(the context is full: the %d oldest turns are forgotten)\n", forgot);
  } catch (const UserError& error) {
    conversation.drop_question();
    std::fprintf(stderr, "%s\n", error.what());
    return false;
  }
  const Answer answer = session.answer(prompt, [&](const std::string& text) {
    if (json) return;
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  });
  if (answer.finish == engine::FinishReason::kError)
    throw UserError("flywheel chat", answer.error, "", ErrorCode::kUnavailable);
  conversation.add("assistant", answer.text);
  if (json) {
    std::printf("%s\n", to_json(answer).dump().c_str());
    std::fflush(stdout);
    return true;
  }
  std::printf("\n");
  std::fflush(stdout);
  const bool dim = isatty(STDERR_FILENO) != 0 && !env::no_color();
  std::fprintf(stderr, "%s%s%s\n", dim ? "\x1b[2m" : "", figures(answer).c_str(), dim ? "\x1b[0m" : "");
  return true;
}

int verb_chat(const std::vector<std::string>& args) {
  App app{"Talk with a model. Questions come from stdin, a line each; answers go to stdout."};
  SessionOptions options;
  options.sampling.temperature = 0.6f;
  options.sampling.top_p = 0.9f;
  options.max_tokens = 1024;  // small models can repeat themselves for ever
  std::string system;
  bool json = false;
  app.add_option("model", options.engine.model, "An artifact's name, a .gguf file or a Hugging Face folder")
      ->required();
  app.add_option("--system", system, "What the model is told before the conversation");
  app.add_flag("--json", json, "Each answer as one JSON object with its figures");
  add_session_options(app, options);
  app.footer(
      "  flywheel chat smollm2\n"
      "  flywheel chat smollm2 --system 'Answer in one sentence.' --temperature 0\n"
      "  echo 'Write one sentence about the sea.' | flywheel chat ./model.gguf --json\n");
  if (const auto exit = parse(app, "chat", args)) return *exit;
  check(options);
  check_utf8("--system", system);

  Session session(options);
  Conversation conversation(session, system);
  // Room for an answer that says something, and not more than half of a small context.
  const int64_t room_tokens =
      std::min<int64_t>(options.max_tokens > 0 ? std::min<int64_t>(options.max_tokens, 256) : 256,
                        session.engine().max_context_tokens() / 2);
  const bool person = isatty(STDIN_FILENO) != 0;
  if (person) std::fprintf(stderr, "%s %s\n", session.engine().model().name.c_str(), kCommands);
  bool refused = false;
  for (std::string line;;) {
    if (person) std::fprintf(stderr, "\n> ");
    if (!std::getline(std::cin, line)) break;
    if (line == "/exit" || line == "/quit") break;
    if (line == "/clear") {
      conversation.clear();
    } else if (line == "/help") {
      std::fprintf(stderr, "%s\n", kCommands);
    } else if (!line.empty()) {
      refused = !turn(session, conversation, line, room_tokens, json);
    }
  }
  if (person) std::fprintf(stderr, "\n");
  return refused && !person ? 1 : 0;
}

REGISTER_VERB(chat, "Talk with a model", verb_chat);

}  // namespace
}  // namespace flywheel::cli
