// Where a program that drives workers waits for processes that somebody else started (mpirun, torchrun, a
// Kubernetes Job, Ray), and the keys with which they may join it.
//
// It travels as a file in a folder that all see, readable by its owner alone; or as an endpoint that all know
// and a secret that all were given. Keys are never on a command line nor in a log.
//
// Errors: kDenied for a file or secret that others may read, kCorrupt for one that is no such file, kInvalid.
//
//   ASSIGN_OR_RETURN(const JoinFile file, JoinFile::write(path, {"tcp://10.0.0.1:4711", keys}));
//   ASSIGN_OR_RETURN(const JoinPoint point, read_join_file(path));
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "runtime/transport.h"

namespace flywheel::runtime {

struct JoinPoint {
  std::string endpoint;
  Keys keys;
};

Result<JoinPoint> read_join_file(const std::string& path);

// Lies there as long as this lives, unless another has taken its place.
class JoinFile {
 public:
  static Result<JoinFile> write(const std::string& path, const JoinPoint& point);
  JoinFile() = default;
  ~JoinFile();
  JoinFile(JoinFile&& other) noexcept { *this = std::move(other); }
  JoinFile& operator=(JoinFile&& other) noexcept;

 private:
  std::string path_, text_;
};

// The same keys for all who know the secret, which is of 32 characters at least.
Result<Keys> keys_from_secret(std::string_view secret);
// Of a file that this user and at most a group may read.
Result<Keys> keys_from_secret_file(const std::string& path);
// A file's content without the line's end, whoever may read it.
Result<std::string> read_secret_file(const std::string& path);

}  // namespace flywheel::runtime
