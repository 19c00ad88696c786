// Collectives over Gloo's TCP connections, for groups that span hosts.
//
// Gloo's own algorithms add in the order in which its rings pass; here only its messages are used. A sum is
// an exchange of slices (rank r gets everybody's slice r), a reduction in rank order, and an exchange of the
// results: as many bytes on the wire as a ring, and the same bits every time, and as in shared memory.
//
// Messages meet by their slot, made from the operation's signature and its number: ranks that disagree about
// the operation wait for messages that nobody sends, until their deadline.
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "base/cpu.h"
#include "base/hash.h"
#include "runtime/collectives_reduce.h"
#include "runtime/collectives_transport_internal.h"
#include "runtime/gloo_loader_internal.h"

namespace flywheel::runtime {
namespace {

constexpr int64_t kChunkBytes = 4 << 20;    // of a message at a time: bounds the scratch memory
constexpr int64_t kSmallBytes = 16 * 1024;  // below: everybody sends everything, which saves a round
constexpr int64_t kLineBytes = 64;
constexpr int kNonceBytes = 32;
constexpr uint64_t kPointToPoint = uint64_t{1} << 62;

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Messages under way; waited for on every path, since the memory is theirs until then.
class Exchange {
 public:
  Exchange(const FlywheelGlooTable& gloo, FlywheelGlooMember* member, uint64_t slot)
      : gloo_(gloo), member_(member), slot_(slot) {}
  ~Exchange() {
    FlywheelGlooText ignored;
    if (exchange_ != nullptr) gloo_.wait(member_, exchange_, 1, &ignored);
  }
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  void send(int to, const void* data, int64_t bytes) {
    sends_.push_back(
        {to, const_cast<void*>(data), bytes});  // Gloo's buffers are not const; a send only reads
  }
  void recv(int from, void* data, int64_t bytes) { recvs_.push_back({from, data, bytes}); }

  Result<void> begin() {
    FlywheelGlooText error;
    exchange_ = gloo_.begin(member_, sends_.data(), static_cast<int>(sends_.size()), recvs_.data(),
                            static_cast<int>(recvs_.size()), slot_, &error);
    if (exchange_ == nullptr) return make_error(ErrorCode::kAborted, "{}", error.text);
    return {};
  }
  Result<void> wait(Deadline deadline) {
    FlywheelGlooText error;
    const int outcome =
        gloo_.wait(member_, std::exchange(exchange_, nullptr), deadline.remaining_ms(), &error);
    if (outcome == kGlooDone) return {};
    if (outcome == kGlooTimeout) {
      return make_error(ErrorCode::kDeadline, "time is up while waiting for the other ranks");
    }
    return make_error(ErrorCode::kAborted, "{}", error.text);
  }

 private:
  const FlywheelGlooTable& gloo_;
  FlywheelGlooMember* const member_;
  const uint64_t slot_;
  std::vector<FlywheelGlooMessage> sends_, recvs_;
  FlywheelGlooExchange* exchange_ = nullptr;
};

class GlooTransport final : public CollectiveTransport {
 public:
  GlooTransport(const Group& group, const FlywheelGlooTable* gloo, FlywheelGlooMember* member)
      : group_(group),
        rank_(group.rank),
        size_(group.size()),
        gloo_(*gloo),
        member_(member),
        reduce_(reduce_in_rank_order(isa())),
        sent_(static_cast<size_t>(size_)),
        received_(static_cast<size_t>(size_)) {
    size_t bytes;
    const char* address = gloo_.address(member_, &bytes);
    address_.assign(address, bytes);
  }
  ~GlooTransport() override { gloo_.close(member_); }

  const char* name() const override { return "gloo"; }
  const std::string& address() const override { return address_; }

  Result<void> connect(const std::vector<std::string>& addresses, Deadline deadline) override {
    std::vector<const char*> pointers;
    std::vector<size_t> sizes;
    for (const std::string& a : addresses) pointers.push_back(a.data()), sizes.push_back(a.size());
    FlywheelGlooText error;
    const int outcome = gloo_.connect(member_, pointers.data(), sizes.data(),
                                      std::max<int64_t>(1, deadline.remaining_ms()), &error);
    if (outcome == kGlooTimeout) {
      return explained(make_error(ErrorCode::kDeadline, "not all ranks came within the time given"));
    }
    if (outcome != kGlooDone) return explained(make_error(ErrorCode::kAborted, "{}", error.text));
    return explained(authenticate(deadline));
  }

  void abort(const std::string& why) override {
    gloo_.abort(member_, fmt::format("rank {}: {}", rank_, why).c_str());
  }
  bool broken() const override {
    FlywheelGlooText ignored;
    return gloo_.aborted(member_, &ignored) != 0;
  }

  Result<void> collective(const Collective& collective, Deadline deadline) override {
    signature_ = signature(collective);
    deadline_ = deadline;
    return explained(std::visit([&](const auto& op) { return perform(op); }, collective));
  }

  Result<void> send(const Send& op, Deadline deadline) override {
    Exchange exchange(gloo_, member_, point_slot(op, sent_[static_cast<size_t>(op.to)]++));
    exchange.send(op.to, op.in.data, op.in.bytes());
    return explained(complete(exchange, deadline));
  }
  Result<void> recv(const Recv& op, Deadline deadline) override {
    const Send match{ConstBuffer(op.out), rank_};
    Exchange exchange(gloo_, member_, point_slot(match, received_[static_cast<size_t>(op.from)]++));
    exchange.recv(op.from, op.out.data, op.out.bytes());
    return explained(complete(exchange, deadline));
  }

 private:
  static uint64_t mix(uint64_t signature, uint64_t number) {
    return xxh64({reinterpret_cast<const char*>(&signature), sizeof(signature)}, number) &
           (kPointToPoint - 1);
  }
  static uint64_t point_slot(const Send& op, uint64_t number) {
    return mix(signature(op), number) | kPointToPoint;
  }
  uint64_t next_slot() { return mix(signature_, next_++); }

  // Challenge and response between every two ranks: each sends a random number and answers the other's with a
  // code that only who has the key can make. The code names the group, its epoch and both ranks, so that it
  // is good for nothing else.
  Result<void> authenticate(Deadline deadline) {
    std::string own(kNonceBytes, 0);
    CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(own.data()), kNonceBytes) == 1, "no random numbers");
    const auto n = static_cast<size_t>(size_);
    std::vector<std::string> theirs(n, std::string(kNonceBytes, 0)), proofs(n), answers(n);
    Exchange challenge(gloo_, member_, next_slot()), response(gloo_, member_, next_slot());
    for_peers([&](int peer) {
      challenge.recv(peer, theirs[static_cast<size_t>(peer)].data(), kNonceBytes);
      challenge.send(peer, own.data(), kNonceBytes);
    });
    RETURN_IF_ERROR(complete(challenge, deadline));
    for_peers([&](int peer) {
      const auto p = static_cast<size_t>(peer);
      proofs[p] = proof(rank_, peer, own, theirs[p]);
      answers[p].resize(proofs[p].size());
      response.recv(peer, answers[p].data(), std::ssize(answers[p]));
      response.send(peer, proofs[p].data(), std::ssize(proofs[p]));
    });
    RETURN_IF_ERROR(complete(response, deadline));
    for (int peer = 0; peer < size_; ++peer) {
      const auto p = static_cast<size_t>(peer);
      if (peer == rank_) continue;
      if (const std::string wanted = proof(peer, rank_, theirs[p], own);
          CRYPTO_memcmp(wanted.data(), answers[p].data(), wanted.size()) != 0) {
        return make_error(ErrorCode::kAborted, "who came as rank {} does not have the key of the run", peer);
      }
    }
    return {};
  }

  // HMAC-SHA-256 by the group's key.
  std::string proof(int from, int to, const std::string& nonce_from, const std::string& nonce_to) const {
    const std::string text = fmt::format("flywheel collectives 1\n{}\n{}\n{}\n{}\n{}\n", group_.name,
                                         group_.epoch, size_, from, to) +
                             nonce_from + nonce_to;
    std::array<unsigned char, EVP_MAX_MD_SIZE> code{};
    unsigned length = 0;
    CHECK(HMAC(EVP_sha256(), group_.key.data(), static_cast<int>(group_.key.size()),
               reinterpret_cast<const unsigned char*>(text.data()), text.size(), code.data(),
               &length) != nullptr,
          "HMAC");
    return {reinterpret_cast<const char*>(code.data()), length};
  }

  static Result<void> complete(Exchange& exchange, Deadline deadline) {
    RETURN_IF_ERROR(exchange.begin());
    return exchange.wait(deadline);
  }
  // Names the member, and breaks the group for all.
  Result<void> explained(Result<void> result) {
    if (result.ok()) return result;
    abort(result.error().message);
    return make_error(result.error().code, "{}: {}", describe(group_), result.error().message);
  }

  template <typename Body>
  void for_peers(Body&& body) const {
    for (int step = 1; step < size_; ++step) body((rank_ + step) % size_);
  }
  Range slice(int rank, int64_t bytes) const {
    const int64_t per_rank = ((bytes + size_ - 1) / size_ + kLineBytes - 1) / kLineBytes * kLineBytes;
    return {std::min(rank * per_rank, bytes), std::min((rank + 1) * per_rank, bytes)};
  }
  // out = the reduction of `mine` and, for the others, scratch + peer * stride.
  void reduce(Element element, Reduce reduce, void* out, const char* mine, const char* scratch,
              int64_t stride, int64_t bytes) {
    inputs_.resize(static_cast<size_t>(size_));
    for (int r = 0; r < size_; ++r)
      inputs_[static_cast<size_t>(r)] = r == rank_ ? mine : scratch + r * stride;
    reduce_(element, reduce, out, nullptr, inputs_.data(), size_, bytes / element_bytes(element));
  }
  char* scratch(int64_t bytes) {
    if (std::ssize(scratch_) < bytes) scratch_.resize(static_cast<size_t>(bytes));
    return scratch_.data();
  }

  Result<void> perform(const AllReduce& op) {
    const auto* in = static_cast<const char*>(op.in.data);
    auto* out = static_cast<char*>(op.out.data);
    const int64_t bytes = op.in.bytes();
    if (bytes <= kSmallBytes) {
      char* all = scratch(bytes * size_);
      Exchange exchange(gloo_, member_, next_slot());
      for_peers([&](int peer) {
        exchange.recv(peer, all + peer * bytes, bytes);
        exchange.send(peer, in, bytes);
      });
      RETURN_IF_ERROR(complete(exchange, deadline_));
      reduce(op.in.element, op.reduce, out, in, all, bytes, bytes);
      return {};
    }
    for (int64_t at = 0; at < bytes; at += kChunkBytes) {
      RETURN_IF_ERROR(all_reduce_chunk(op, in + at, out + at, std::min(kChunkBytes, bytes - at)));
    }
    return {};
  }

  Result<void> all_reduce_chunk(const AllReduce& op, const char* in, char* out, int64_t bytes) {
    const Range own = slice(rank_, bytes);
    char* theirs = scratch(own.size() * size_);
    Exchange scatter(gloo_, member_, next_slot()), gather(gloo_, member_, next_slot());
    for_peers([&](int peer) {
      const Range range = slice(peer, bytes);
      scatter.recv(peer, theirs + peer * own.size(), own.size());
      scatter.send(peer, in + range.begin, range.size());
    });
    RETURN_IF_ERROR(complete(scatter, deadline_));
    reduce(op.in.element, op.reduce, out + own.begin, in + own.begin, theirs, own.size(), own.size());
    for_peers([&](int peer) {
      const Range range = slice(peer, bytes);
      gather.recv(peer, out + range.begin, range.size());
      gather.send(peer, out + own.begin, own.size());
    });
    return complete(gather, deadline_);
  }

  Result<void> perform(const ReduceScatter& op) {
    const auto* in = static_cast<const char*>(op.in.data);
    auto* out = static_cast<char*>(op.out.data);
    const int64_t part = op.out.bytes(),
                  step = std::max(kLineBytes, kChunkBytes / size_ / kLineBytes * kLineBytes);
    for (int64_t at = 0; at == 0 || at < part; at += step) {  // once even when empty: the ranks meet
      const int64_t piece = std::min(step, part - at);
      char* theirs = scratch(piece * size_);
      Exchange exchange(gloo_, member_, next_slot());
      for_peers([&](int peer) {
        exchange.recv(peer, theirs + peer * piece, piece);
        exchange.send(peer, in + peer * part + at, piece);
      });
      RETURN_IF_ERROR(complete(exchange, deadline_));
      reduce(op.in.element, op.reduce, out + at, in + rank_ * part + at, theirs, piece, piece);
    }
    return {};
  }

  Result<void> perform(const AllGather& op) {
    const auto* in = static_cast<const char*>(op.in.data);
    return all_gather(in, static_cast<char*>(op.out.data), op.in.bytes());
  }
  Result<void> all_gather(const char* in, char* out, int64_t part) {
    if (part > 0 && out + rank_ * part != in) std::memcpy(out + rank_ * part, in, static_cast<size_t>(part));
    Exchange exchange(gloo_, member_, next_slot());
    for_peers([&](int peer) {
      exchange.recv(peer, out + peer * part, part);
      exchange.send(peer, in, part);
    });
    return complete(exchange, deadline_);
  }

  Result<void> perform(const AllToAll& op) {
    const auto* in = static_cast<const char*>(op.in.data);
    auto* out = static_cast<char*>(op.out.data);
    const int64_t part = op.in.bytes() / size_;
    if (part > 0) std::memcpy(out + rank_ * part, in + rank_ * part, static_cast<size_t>(part));
    Exchange exchange(gloo_, member_, next_slot());
    for_peers([&](int peer) {
      exchange.recv(peer, out + peer * part, part);
      exchange.send(peer, in + peer * part, part);
    });
    return complete(exchange, deadline_);
  }

  // Long ones go out in slices that the ranks then hand round, so that the root sends each byte once.
  Result<void> perform(const Broadcast& op) {
    auto* data = static_cast<char*>(op.buffer.data);
    const int64_t bytes = op.buffer.bytes();
    const bool sliced = size_ > 2 && bytes > kSmallBytes;
    const auto piece = [&](int rank) { return sliced ? slice(rank, bytes) : Range{0, bytes}; };
    Exchange first(gloo_, member_, next_slot());
    if (rank_ == op.root) {
      for_peers([&](int peer) { first.send(peer, data + piece(peer).begin, piece(peer).size()); });
    } else {
      first.recv(op.root, data + piece(rank_).begin, piece(rank_).size());
    }
    RETURN_IF_ERROR(complete(first, deadline_));
    if (!sliced) return {};
    Exchange second(gloo_, member_, next_slot());
    for_peers([&](int peer) {
      second.recv(peer, data + piece(peer).begin, piece(peer).size());
      second.send(peer, data + piece(rank_).begin, piece(rank_).size());
    });
    return complete(second, deadline_);
  }

  Result<void> perform(const Barrier&) {
    char nothing = 0;
    return all_gather(&nothing, &nothing, 0);
  }
  Result<void> perform(const Send&) { CHECK(false, "send() is not a collective"); }
  Result<void> perform(const Recv&) { CHECK(false, "recv() is not a collective"); }

  const Group group_;
  const int rank_, size_;
  const FlywheelGlooTable& gloo_;
  FlywheelGlooMember* const member_;
  const ReduceFn reduce_;
  std::string address_;
  uint64_t next_ = 0;                      // number of the next exchange, which all ranks count alike
  std::vector<uint64_t> sent_, received_;  // messages to and from each rank
  std::vector<char> scratch_;
  std::vector<const void*> inputs_;
  uint64_t signature_ = 0;
  Deadline deadline_ = Deadline::never();
};

}  // namespace

Result<std::unique_ptr<CollectiveTransport>> open_gloo_transport(const Group& group) {
  if (group.key.empty()) {
    return make_error(ErrorCode::kDenied, "{}: a group over several hosts needs a key", describe(group));
  }
  ASSIGN_OR_RETURN(const FlywheelGlooTable* gloo, load_gloo());
  FlywheelGlooText error;
  const std::string& host = group.hosts[static_cast<size_t>(group.rank)];
  FlywheelGlooMember* member = gloo->open(group.rank, group.size(), host.c_str(), &error);
  if (member == nullptr) {
    return make_error(ErrorCode::kIo, "{}: cannot listen on {}: {}", describe(group), host, error.text);
  }
  return std::unique_ptr<CollectiveTransport>(std::make_unique<GlooTransport>(group, gloo, member));
}

}  // namespace flywheel::runtime
