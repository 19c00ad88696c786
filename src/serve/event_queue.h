// Events from another thread (an engine's step loop) to a coroutine on a connection's strand.
//
// Ownership: shared; the producer keeps a shared_ptr, so that it may still push when the consumer is gone.
// Threads: push from any, pop from one coroutine on `executor`.
//
//   auto events = std::make_shared<EventQueue<Token>>(exchange.executor());
//   engine.submit(request, [events](Token token) { events->push(std::move(token)); });
//   while (auto token = co_await events->pop(500)) ...     // nothing: 500 ms passed without an event
#pragma once

#include <utility>  // first: Boost 1.74's awaitable.hpp needs it and does not include it

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>

namespace flywheel::serve {

template <typename Event>
class EventQueue : public std::enable_shared_from_this<EventQueue<Event>> {
 public:
  explicit EventQueue(const boost::asio::any_io_executor& executor) : timer_(executor) {}

  void push(Event event) {
    {
      const std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
      if (wake_posted_) return;  // one wake-up serves all that came before it
      wake_posted_ = true;
    }
    boost::asio::post(timer_.get_executor(), [self = this->shared_from_this()] {
      const std::lock_guard lock(self->mutex_);
      self->wake_posted_ = false;
      self->timer_.cancel();
    });
  }

  // The next event, or nothing after `wait_ms` without one.
  boost::asio::awaitable<std::optional<Event>> pop(int64_t wait_ms) {
    if (auto event = try_pop()) co_return event;
    timer_.expires_after(std::chrono::milliseconds(wait_ms));
    boost::system::error_code ignored;  // cancelled: an event came
    co_await timer_.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
    co_return try_pop();
  }

  // The next event if one is there.
  std::optional<Event> try_pop() {
    const std::lock_guard lock(mutex_);
    if (events_.empty()) return std::nullopt;
    std::optional<Event> event(std::move(events_.front()));
    events_.pop_front();
    return event;
  }

 private:
  boost::asio::steady_timer timer_;  // used on the executor only
  std::mutex mutex_;
  std::deque<Event> events_;
  bool wake_posted_ = false;
};

}  // namespace flywheel::serve
