#include "base/result.h"

namespace flywheel {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kFull:
      return "full";
    case ErrorCode::kCancelled:
      return "cancelled";
    case ErrorCode::kNotFound:
      return "not found";
    case ErrorCode::kExists:
      return "exists";
    case ErrorCode::kPeerLost:
      return "peer lost";
    case ErrorCode::kDeadline:
      return "deadline passed";
    case ErrorCode::kAborted:
      return "aborted";
    case ErrorCode::kCorrupt:
      return "corrupt";
    case ErrorCode::kInvalid:
      return "invalid";
    case ErrorCode::kDenied:
      return "denied";
    case ErrorCode::kUnavailable:
      return "unavailable";
    case ErrorCode::kIo:
      return "input/output";
  }
  return "unknown";
}

}  // namespace flywheel
