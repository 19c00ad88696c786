// HTTP requests to others (model hubs, checks of our own server), over libcurl.
//
// Certificates are verified; redirects are followed within http and https; secrets in headers are not
// logged and not sent to another host on a redirect. Threads: any.
// Errors, which never say a user or password in the URL: kUnavailable when no connection could be made,
// kDeadline, kInvalid for a bad URL or a header with control characters, kCorrupt for a redirect away from
// http. A status of 400 or more is not an Error: look at `status`.
//
//   auto reply = http_get("http://127.0.0.1:8000/v1/models", {.deadline = Deadline::after_ms(2000)});
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "base/deadline.h"
#include "base/result.h"

namespace flywheel {

struct HttpOptions {
  std::map<std::string, std::string> headers;
  Deadline deadline = Deadline::after_ms(30'000);
  int64_t stall_ms = 0;     // > 0: kDeadline when nothing came for so long, whatever the deadline
  int64_t range_from = -1;  // >= 0: "Range: bytes=N-"
  size_t max_body_bytes = size_t{256} << 20;  // for bodies held in memory: more is kFull
  int max_redirects = 5;
  // Called with each piece of the body as it comes instead of keeping it; false stops (kCancelled).
  std::function<bool(std::string_view piece)> on_body;
  // Called once, before the first piece.
  std::function<void(int status, const std::map<std::string, std::string>& headers)> on_headers;
};

struct HttpReply {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case; of the last response
  std::string body;
};

Result<HttpReply> http_get(const std::string& url, const HttpOptions& options = {});
Result<HttpReply> http_head(const std::string& url, const HttpOptions& options = {});
Result<HttpReply> http_post(const std::string& url, std::string_view body, const HttpOptions& options = {});

}  // namespace flywheel
