#include "runtime/shm_segment.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "base/cpu.h"
#include "base/hash.h"
#include "runtime/collectives_transport_internal.h"

namespace flywheel::runtime {
namespace {

constexpr uint64_t kMagic = 0x31306d6873796c66;  // "flyshm01"
constexpr int64_t kPage = 4096;
constexpr int64_t kNapMs = 10;  // the longest sleep before a look at who is alive
constexpr int kMaxRanks = 1024;

Error system_error(const char* what) {
  return make_error(ErrorCode::kIo, "{}: {}", what, std::strerror(errno));
}

enum class MemberState : uint8_t {
  kExpected = 0,
  kJoined,  // holds its lock while it lives
  kLeft,    // said goodbye: its lock means nothing any more
};

// What a member says to rank 0 when it asks for the memory.
struct Hello {
  uint64_t magic;
  uint64_t group;  // hash of name and epoch
  int32_t rank;
  int32_t size;
};

Hello make_hello(const Group& group) {
  return {kMagic, xxh64(group.name, group.epoch), group.rank, group.size()};
}

bool same_user(int socket) {
  ucred peer{};
  socklen_t length = sizeof(peer);
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid();
}

bool send_descriptor(int socket, int descriptor) {
  char byte = 'm';
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
  msghdr message{};
  message.msg_iov = &part, message.msg_iovlen = 1;
  message.msg_control = control, message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
  return sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

int receive_descriptor(int socket) {
  char byte;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
  msghdr message{};
  message.msg_iov = &part, message.msg_iovlen = 1;
  message.msg_control = control, message.msg_controllen = sizeof(control);
  if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1) return -1;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return -1;
  int descriptor;
  std::memcpy(&descriptor, CMSG_DATA(header), sizeof(int));
  return descriptor;
}

}  // namespace

struct ShmSegment::Header {
  uint64_t magic;
  int64_t data_bytes;
  std::atomic<uint32_t> abort_state;  // 0: no; 1: the reason is being written; 2: it stands below
  char abort_reason[500];
  ShmSignal joined;  // how many members have joined
  std::atomic<MemberState> members[kMaxRanks];
};

ShmSegment::ShmSegment(const Group& group, int64_t data_bytes) : group_(group), data_bytes_(data_bytes) {
  mapped_bytes_ = (static_cast<int64_t>(sizeof(Header)) + kPage - 1) / kPage * kPage + data_bytes;
  // With a core for every rank, spinning (about 50 us) is the shortest way to the next step; with fewer it
  // takes the core from whoever is waited for.
  spins_ = group.size() <= usable_cores() ? 2000 : 50;
}

ShmSegment::~ShmSegment() {
  if (Header* header = header_.exchange(nullptr); header != nullptr) {
    header->members[group_.rank].store(MemberState::kLeft);
    munmap(header, static_cast<size_t>(mapped_bytes_));
  }
}

Result<std::unique_ptr<ShmSegment>> ShmSegment::open(const Group& group, int64_t data_bytes) {
  if (group.size() > kMaxRanks) {
    return make_error(ErrorCode::kInvalid, "at most {} ranks share memory", kMaxRanks);
  }
  std::unique_ptr<ShmSegment> segment(new ShmSegment(group, data_bytes));
  if (group.rank == 0) RETURN_IF_ERROR(segment->create());
  return segment;
}

Result<void> ShmSegment::create() {
  Descriptor memory{memfd_create("flywheel-collectives", MFD_CLOEXEC)};
  if (!memory.valid()) return system_error("memfd_create");
  if (ftruncate(memory.get(), mapped_bytes_) != 0) return system_error("size of shared memory");
  RETURN_IF_ERROR(map(memory.get()));
  header_.load()->magic = kMagic, header_.load()->data_bytes = data_bytes_;

  listener_ = Descriptor(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_.valid()) return system_error("unix socket");
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  // A bare family asks the kernel for an unused abstract name.
  if (bind(listener_.get(), reinterpret_cast<sockaddr*>(&name), sizeof(sa_family_t)) != 0)
    return system_error("bind");
  if (listen(listener_.get(), kMaxRanks) != 0) return system_error("listen");
  socklen_t length = sizeof(name);
  if (getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&name), &length) != 0)
    return system_error("getsockname");
  address_.assign(name.sun_path + 1, length - sizeof(sa_family_t) - 1);
  return {};
}

// Opens the file once more, since locks belong to an open file and the one that was handed over is rank 0's.
Result<void> ShmSegment::map(int descriptor) {
  memory_ = Descriptor(::open(fmt::format("/proc/self/fd/{}", descriptor).c_str(), O_RDWR | O_CLOEXEC));
  if (!memory_.valid()) return system_error("opening shared memory again");
  struct stat info {};
  if (fstat(memory_.get(), &info) != 0) return system_error("size of shared memory");
  if (info.st_size != mapped_bytes_) {
    return make_error(ErrorCode::kInvalid,
                      "shared memory has {} bytes, expected {}; do all ranks run the same build?",
                      info.st_size, mapped_bytes_);
  }
  void* address =
      mmap(nullptr, static_cast<size_t>(mapped_bytes_), PROT_READ | PROT_WRITE, MAP_SHARED, memory_.get(), 0);
  if (address == MAP_FAILED) return system_error("mapping shared memory");
  data_ = static_cast<char*>(address) + (mapped_bytes_ - data_bytes_);

  struct flock lock {};
  lock.l_type = F_WRLCK, lock.l_whence = SEEK_SET, lock.l_start = group_.rank, lock.l_len = 1;
  if (fcntl(memory_.get(), F_OFD_SETLK, &lock) != 0) {
    return make_error(ErrorCode::kInvalid, "another process is this rank already");
  }
  header_.store(static_cast<Header*>(address));
  return {};
}

Result<void> ShmSegment::join(const std::string& leader_address, Deadline deadline) {
  if (group_.rank == 0) {
    RETURN_IF_ERROR(hand_out(deadline));
  } else {
    RETURN_IF_ERROR(receive(leader_address, deadline));
  }
  Header& header = *header_.load();
  listener_.reset();  // nobody else is welcome
  header.members[group_.rank].store(MemberState::kJoined);
  header.joined.value.fetch_add(1);  // raised by everybody, so not with publish()
  header.joined.wake();
  return wait(header.joined, static_cast<uint32_t>(group_.size()), -1, deadline);
}

Result<void> ShmSegment::check_alive(Deadline deadline) {
  if (aborted()) return abort_error();
  if (deadline.expired()) {
    return make_error(ErrorCode::kDeadline, "not all ranks came within the time given");
  }
  return {};
}

Result<void> ShmSegment::hand_out(Deadline deadline) {
  for (int missing = group_.size() - 1; missing > 0;) {
    RETURN_IF_ERROR(check_alive(deadline));
    if (const int dead = find_dead(); dead >= 0) {
      return make_error(ErrorCode::kPeerLost, "rank {} died while the group formed", dead);
    }
    pollfd ready{listener_.get(), POLLIN, 0};
    if (poll(&ready, 1, static_cast<int>(std::min(kNapMs, deadline.remaining_ms()))) <= 0) continue;
    const Descriptor peer{accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
    if (!peer.valid() || !same_user(peer.get())) continue;
    const timeval limit{1, 0};  // a stranger who says nothing does not hold us up
    setsockopt(peer.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    Hello hello{};
    const Hello expected = make_hello(group_);
    if (recv(peer.get(), &hello, sizeof(hello), MSG_WAITALL) != sizeof(hello)) continue;
    if (hello.magic != expected.magic || hello.group != expected.group || hello.size != expected.size ||
        hello.rank <= 0 || hello.rank >= group_.size()) {
      continue;  // of another group or epoch: it sees the connection close
    }
    if (send_descriptor(peer.get(), memory_.get())) --missing;
  }
  return {};
}

Result<void> ShmSegment::receive(const std::string& leader_address, Deadline deadline) {
  Descriptor leader{socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (!leader.valid()) return system_error("unix socket");
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (leader_address.empty() || leader_address.size() >= sizeof(name.sun_path)) {
    return make_error(ErrorCode::kInvalid, "rank 0's endpoint is malformed");
  }
  std::memcpy(name.sun_path + 1, leader_address.data(), leader_address.size());
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + leader_address.size());
  const auto lost = [&] {
    return make_error(ErrorCode::kPeerLost, "rank 0 is gone or of another epoch ({})", std::strerror(errno));
  };
  if (connect(leader.get(), reinterpret_cast<sockaddr*>(&name), length) != 0 || !same_user(leader.get())) {
    return lost();
  }
  const Hello hello = make_hello(group_);
  if (send(leader.get(), &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello)) return lost();
  for (;;) {
    RETURN_IF_ERROR(check_alive(deadline));
    pollfd ready{leader.get(), POLLIN, 0};
    if (poll(&ready, 1, static_cast<int>(std::min(kNapMs, deadline.remaining_ms()))) > 0) break;
  }
  const Descriptor memory{receive_descriptor(leader.get())};
  if (!memory.valid()) return lost();
  RETURN_IF_ERROR(map(memory.get()));
  if (const Header& header = *header_.load(); header.magic != kMagic || header.data_bytes != data_bytes_) {
    return make_error(ErrorCode::kInvalid,
                      "shared memory of another version; do all ranks run the same build?");
  }
  return {};
}

int ShmSegment::find_dead() const {
  const Header& header = *header_.load();
  for (int rank = 0; rank < group_.size(); ++rank) {
    if (rank == group_.rank || header.members[rank].load() != MemberState::kJoined) continue;
    struct flock lock {};
    lock.l_type = F_WRLCK, lock.l_whence = SEEK_SET, lock.l_start = rank, lock.l_len = 1;
    const bool unlocked = fcntl(memory_.get(), F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
    // Looked at again: it may have left in between.
    if (unlocked && header.members[rank].load() == MemberState::kJoined) return rank;
  }
  return -1;
}

Result<void> ShmSegment::wait(ShmSignal& signal, uint32_t target, int peer, Deadline deadline) {
  if (signal.reached(target)) return {};
  const int spins = signal.worth_spinning() ? spins_ : 0;
  for (int spin = 0; spin < spins; ++spin) {
    if (signal.reached(target)) return {};
    cpu_relax();
  }
  const Header& header = *header_.load();
  for (;;) {
    const bool peer_left = peer >= 0 && header.members[peer].load() == MemberState::kLeft;
    const bool over = aborted(), expired = deadline.expired();
    if (signal.reached(target)) return {};  // looked at last: what was raised before an end still counts
    if (over) return abort_error();
    if (peer_left) return make_error(ErrorCode::kAborted, "rank {} has left", peer);
    if (expired) {
      return make_error(ErrorCode::kDeadline, "time is up while waiting for {}",
                        peer >= 0 ? fmt::format("rank {}", peer) : "the other ranks");
    }
    signal.sleep(target, std::clamp<int64_t>(deadline.remaining_ms(), 1, kNapMs));
    if (signal.reached(target)) return {};
    if (const int dead = find_dead(); dead >= 0) abort(fmt::format("rank {} died", dead));
  }
}

void ShmSegment::abort(const std::string& why) {
  aborted_early_.store(true);
  Header* header = header_.load();
  if (header == nullptr) return;
  uint32_t expected = 0;
  if (!header->abort_state.compare_exchange_strong(expected, 1)) return;
  const size_t length = std::min(why.size(), sizeof(header->abort_reason) - 1);
  std::memcpy(header->abort_reason, why.data(), length);
  header->abort_state.store(2);
}

bool ShmSegment::aborted() const {
  if (aborted_early_.load()) return true;
  const Header* header = header_.load();
  return header != nullptr && header->abort_state.load() != 0;
}

Error ShmSegment::abort_error() const {
  const Header* header = header_.load();
  const bool said = header != nullptr && header->abort_state.load() == 2;
  return make_error(ErrorCode::kAborted, "{}", said ? header->abort_reason : "aborted");
}

}  // namespace flywheel::runtime
