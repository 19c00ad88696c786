// What went wrong with a request, in OpenAI's form:
//   {"error": {"message": ..., "type": ..., "param": "temperature", "code": ...}}
//
// Thrown by the parsers of requests and caught in the API's one handler; UserError's sibling for requests,
// with the status and the field beside the words.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>

#include "base/result.h"

namespace flywheel::serve {

class ApiError : public std::runtime_error {
 public:
  ApiError(int status, const std::string& message, std::string param = "", std::string code = "")
      : std::runtime_error(message),
        message(message),
        status(status),
        param(std::move(param)),
        code(std::move(code)) {}

  std::string message;  // all of it: what() ends at a NUL that a client sent
  int status;
  std::string param;      // the request field, "" when none
  std::string code;       // OpenAI's: "model_not_found", "context_length_exceeded", ...
  int retry_after_s = 0;  // for 429 and 503
  std::string allow;      // for 405: the methods that the address takes

  // "invalid_request_error", "rate_limit_error", ... from the status.
  std::string type() const;
  std::string body() const;
  static ApiError from(const Error& error);  // kFull -> 429, kUnavailable -> 503, kInvalid -> 400, ...
  // 405. `allow`: "GET, HEAD".
  static ApiError wrong_method(const std::string& path, const std::string& method, const std::string& allow);
};

}  // namespace flywheel::serve
