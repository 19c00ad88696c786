#include "engine_session.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <mutex>

#include "base/progress.h"
#include "cli.h"

namespace flywheel::cli {
namespace {

std::atomic<bool> interrupted{false};

// Ctrl-C while one of these lives sets `interrupted`; afterwards it does what it did before.
class CatchInterrupt {
 public:
  CatchInterrupt() {
    interrupted = false;
    struct sigaction action = {};
    action.sa_handler = [](int) { interrupted = true; };
    sigaction(SIGINT, &action, &before_);
  }
  ~CatchInterrupt() { sigaction(SIGINT, &before_, nullptr); }
  CatchInterrupt(const CatchInterrupt&) = delete;
  CatchInterrupt& operator=(const CatchInterrupt&) = delete;

 private:
  struct sigaction before_ = {};
};

// Events on their way from the engine's thread.
struct Inbox {
  std::mutex mutex;
  std::condition_variable arrived;
  std::deque<engine::GenerationEvent> events;
};

}  // namespace

void add_session_options(CLI::App& app, SessionOptions& options) {
  engine::SamplingParams& s = options.sampling;
  app.add_option("-n,--max-tokens", options.max_tokens,
                 "Stop after so many tokens; 0: what the context holds")
      ->check(at_least(0))
      ->capture_default_str();
  app.add_option("-t,--temperature", s.temperature, "0 takes the likeliest token each time")
      ->capture_default_str();
  app.add_option("--top-p", s.top_p, "Draw from the smallest set with this probability")
      ->capture_default_str();
  app.add_option("--top-k", s.top_k, "Draw from this many likeliest; 0: all")->capture_default_str();
  app.add_option("--min-p", s.min_p, "Drop tokens below this share of the likeliest")->capture_default_str();
  app.add_option("--repetition-penalty", s.repetition_penalty, "Above 1: repeat less")->capture_default_str();
  app.add_option_function<int64_t>(
         "--seed",
         [&options](int64_t seed) { options.seed = static_cast<uint64_t>(seed), options.has_seed = true; },
         "The same seed gives the same text (default: another one each time)")
      ->check(at_least(0));
  app.add_option("--stop", options.stop, "End before this text; may be given several times")
      ->allow_extra_args(false);
  app.add_option("--context", options.engine.max_context_tokens,
                 "Longest prompt and answer together, in tokens; 0: what model and memory hold")
      ->check(at_least(0));
  app.add_option("--dtype", options.engine.dtype, "Compute in f32, bf16 or f16; auto: as in the file")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "f16"}));
}

void check(const SessionOptions& options) {
  engine::GenerationRequest request;
  request.prompt = {0};
  request.sampling = options.sampling;
  request.stop = options.stop;
  const Result<void> valid = engine::validate(request, 1);
  if (valid.ok()) return;
  // "top_p: 2 is out of range": the field is the flag with other dashes.
  std::string message = valid.error().message;
  const size_t end = message.find(':');
  std::replace(message.begin(), message.begin() + static_cast<std::ptrdiff_t>(end), '_', '-');
  throw UserError("", "--" + message);
}

std::string figures(const Answer& answer) {
  const double decode_seconds = answer.seconds - answer.first_token_seconds;
  const double rate = decode_seconds > 0 && answer.output_tokens > 1
                          ? static_cast<double>(answer.output_tokens - 1) / decode_seconds
                          : 0;
  return fmt::format("{} tokens, {:.1f} tokens/s, first after {} (prompt of {}, {} cached){}",
                     human_count(answer.output_tokens), rate, human_seconds(answer.first_token_seconds),
                     human_count(answer.prompt_tokens), human_count(answer.cached_tokens),
                     answer.finish == engine::FinishReason::kCancelled ? ", stopped" : "");
}

Json to_json(const Answer& answer) {
  Json json = {{"text", answer.text},
               {"finish_reason", engine::finish_reason_name(answer.finish)},
               {"prompt_tokens", answer.prompt_tokens},
               {"cached_tokens", answer.cached_tokens},
               {"output_tokens", answer.output_tokens},
               {"first_token_seconds", answer.first_token_seconds},
               {"seconds", answer.seconds}};
  if (!answer.error.empty()) json["error"] = answer.error;
  return json;
}

Session::Session(const SessionOptions& options) : options_(options) {
  check(options_);
  if (options_.has_seed) options_.sampling.seed = options_.seed;
  options_.engine.max_running = 1;
  engine_ = engine::Engine::open(options_.engine).value_or_throw();
  if (!engine_->model().tokenizer)
    throw UserError(options_.engine.model, "has no tokenizer, so it cannot read text");
}

std::vector<int32_t> Session::encode(const std::string& text) const {
  return engine_->tokenizer().encode(text);
}

Answer Session::answer(const std::vector<int32_t>& prompt,
                       const std::function<void(const std::string&)>& on_text) {
  auto inbox = std::make_shared<Inbox>();
  engine::GenerationRequest request;
  request.prompt = prompt;
  request.sampling = options_.sampling;
  request.stop = options_.stop;
  if (options_.max_tokens > 0) {
    const int64_t room = engine_->max_context_tokens() - static_cast<int64_t>(prompt.size());
    request.max_tokens = std::max<int64_t>(1, std::min(options_.max_tokens, room));
  }
  const CatchInterrupt catch_interrupt;
  const Stopwatch clock;
  const engine::RequestId id = engine_
                                   ->submit(std::move(request),
                                            [inbox](const engine::GenerationEvent& event) {
                                              const std::lock_guard lock(inbox->mutex);
                                              inbox->events.push_back(event);
                                              inbox->arrived.notify_one();
                                            })
                                   .value_or_throw();
  Answer answer;
  for (bool last = false, cancelled = false; !last;) {
    std::unique_lock lock(inbox->mutex);
    // A signal handler cannot notify, so the wait is cut into pieces.
    inbox->arrived.wait_for(lock, std::chrono::milliseconds(50), [&] { return !inbox->events.empty(); });
    std::deque<engine::GenerationEvent> events;
    events.swap(inbox->events);
    lock.unlock();
    if (interrupted && !cancelled) {
      engine_->cancel(id);
      cancelled = true;
    }
    for (const engine::GenerationEvent& event : events) {
      if (answer.first_token_seconds == 0 && event.output_tokens > 0)
        answer.first_token_seconds = clock.seconds();
      answer.text += event.text;
      if (!event.text.empty()) on_text(event.text);
      answer.prompt_tokens = event.prompt_tokens;
      answer.cached_tokens = event.cached_tokens;
      answer.output_tokens = event.output_tokens;
      if (event.finish) answer.finish = *event.finish, answer.error = event.error;
      last = last || event.last;
    }
  }
  answer.seconds = clock.seconds();
  return answer;
}

}  // namespace flywheel::cli
