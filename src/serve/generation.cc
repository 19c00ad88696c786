#include "serve/generation.h"

namespace flywheel::serve {

Generation::Generation(engine::Engine& engine, const asio::any_io_executor& executor)
    : engine_(engine), events_(std::make_shared<EventQueue<ChoiceEvent>>(executor)) {}

Generation::~Generation() {
  if (finished()) return;
  for (const engine::RequestId id : ids_) engine_.cancel(id);  // finished ones are ignored
}

Result<void> Generation::submit(engine::GenerationRequest request) {
  const int n = request.n, first = choices_;
  const bool keep_tokens = request.logprobs.has_value();  // nobody else reads them
  auto id = engine_.submit(std::move(request),
                           [events = events_, first, keep_tokens](const engine::GenerationEvent& event) {
                             ChoiceEvent out{first + event.index, event};
                             if (!keep_tokens) out.event.tokens = {};
                             events->push(std::move(out));
                           });
  if (!id.ok()) return id.error();
  ids_.push_back(*id);
  choices_ += n;
  ++unfinished_;
  return {};
}

std::optional<ChoiceEvent> Generation::counted(std::optional<ChoiceEvent> event) {
  if (event && event->event.last) --unfinished_;
  return event;
}

asio::awaitable<std::optional<ChoiceEvent>> Generation::next() {
  co_return counted(co_await events_->pop(250));
}

std::optional<ChoiceEvent> Generation::try_next() {
  return counted(events_->try_pop());
}

}  // namespace flywheel::serve
