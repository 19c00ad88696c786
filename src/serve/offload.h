// Work that would hold up a connection's strand (tokenizing a long prompt, rendering a template) on a small
// pool of its own; the coroutine goes on where it was.
//
//   std::vector<TokenId> ids = co_await offload([&] { return tokenizer.encode(text); });
#pragma once

#include <utility>  // first: Boost 1.74's awaitable.hpp needs it and does not include it

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <type_traits>

namespace flywheel::serve {

inline boost::asio::thread_pool& offload_pool() {
  static boost::asio::thread_pool pool(2);
  return pool;
}

// What `work` throws comes out here.
template <typename Work>
boost::asio::awaitable<std::invoke_result_t<Work&>> offload(Work work) {
  using T = std::invoke_result_t<Work&>;
  co_return co_await boost::asio::co_spawn(
      offload_pool().get_executor(), [&work]() -> boost::asio::awaitable<T> { co_return work(); },
      boost::asio::use_awaitable);
}

}  // namespace flywheel::serve
