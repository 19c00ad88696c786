// One API call's generation: its prompts submitted to an engine, their events gathered in order, everything
// cancelled when the call ends before they do.
//
// Choices are numbered as OpenAI does: prompt p's sequence i is choice p * n + i.
// Threads: the coroutine that made it.
#pragma once

#include <memory>
#include <vector>

#include "engine/engine.h"
#include "serve/event_queue.h"
#include "serve/http_server.h"

namespace flywheel::serve {

struct ChoiceEvent {
  int choice = 0;
  engine::GenerationEvent event;
};

class Generation {
 public:
  Generation(engine::Engine& engine, const asio::any_io_executor& executor);
  ~Generation();
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // On an error nothing of this prompt was accepted; earlier ones go on until this object ends.
  Result<void> submit(engine::GenerationRequest request);
  // The next event; nothing after a quarter of a second without one (look whether the client is still there).
  asio::awaitable<std::optional<ChoiceEvent>> next();
  std::optional<ChoiceEvent> try_next();
  // Every prompt has had its last event.
  bool finished() const { return unfinished_ == 0; }
  int choices() const { return choices_; }

 private:
  std::optional<ChoiceEvent> counted(std::optional<ChoiceEvent> event);
  engine::Engine& engine_;
  std::shared_ptr<EventQueue<ChoiceEvent>> events_;
  std::vector<engine::RequestId> ids_;
  int choices_ = 0, unfinished_ = 0;
};

}  // namespace flywheel::serve
