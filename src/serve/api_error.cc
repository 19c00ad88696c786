#include "serve/api_error.h"

#include "base/json.h"

namespace flywheel::serve {

std::string ApiError::type() const {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string ApiError::body() const {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? OrderedJson(nullptr) : OrderedJson(text);
  };
  const OrderedJson error = {
      {"error",
       {{"message", message}, {"type", type()}, {"param", or_null(param)}, {"code", or_null(code)}}}};
  return error.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

ApiError ApiError::from(const Error& error) {
  int status = 500;
  switch (error.code) {
    case ErrorCode::kFull:
      status = 429;
      break;
    case ErrorCode::kNotFound:
      status = 404;
      break;
    case ErrorCode::kInvalid:
      status = 400;
      break;
    case ErrorCode::kDenied:
      status = 403;
      break;
    case ErrorCode::kUnavailable:
    case ErrorCode::kPeerLost:
    case ErrorCode::kDeadline:
      status = 503;
      break;
    default:
      break;
  }
  ApiError out(status, error.message);
  if (status == 429 || status == 503) out.retry_after_s = 1;
  return out;
}

ApiError ApiError::wrong_method(const std::string& path, const std::string& method,
                                const std::string& allow) {
  ApiError out(405, path + " takes " + allow + ", not " + method);
  out.allow = allow;
  return out;
}

}  // namespace flywheel::serve
