// The folder where a controller's unix sockets lie, and the removal of those that killed controllers left.
//
// It has mode 0700, so that only the owner reaches the sockets, and lies under the system's temporary folder,
// where paths are short enough for sockets. A lock in it is held as long as its owner lives, which the kernel
// gives back however that ends: making one removes the folders of this user whose lock nobody holds.
//
// Threads: any. Errors: kIo when no folder can be made. What cannot be cleared away is left.
//
//   ASSIGN_OR_RETURN(const auto folder, SocketFolder::make());
//   transport->bind(ZMQ_ROUTER, "ipc://" + folder.path() + "/commands");
#pragma once

#include <string>
#include <utility>

#include "base/result.h"

namespace flywheel::runtime {

class SocketFolder {
 public:
  // `above`: in place of the system's temporary folder. In /tmp where that path is too long for sockets.
  static Result<SocketFolder> make(const std::string& above = "");
  SocketFolder() = default;
  ~SocketFolder();
  SocketFolder(SocketFolder&& other) noexcept
      : path_(std::exchange(other.path_, "")), lock_(std::exchange(other.lock_, -1)) {}
  SocketFolder& operator=(SocketFolder&& other) noexcept;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int lock_ = -1;
};

}  // namespace flywheel::runtime
