// Collectives through memory that all ranks of one host share.
//
// A message moves in chunks through a few slots that each rank owns. In chunk c, rank r
//   stages   copies into its slot what the others need of it, and publishes staged = c
//   reduces  waits until the others have staged c, does its share, and publishes reduced = c
//   collects takes what the others reduced, and publishes done = c: it needs their slots for c no more
// A slot is used again when all ranks are done with it. Rank r stages chunk c+1 before it reduces c and
// collects c-1, so that it seldom waits for a rank that is a little behind.
// In all_reduce every rank reduces one slice of each chunk, and puts the result where its own slice would
// have been staged. All memory traffic beyond reading `in` and writing `out` stays in the caches.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/cpu.h"
#include "runtime/collectives_reduce.h"
#include "runtime/collectives_transport_internal.h"
#include "runtime/shm_segment.h"

namespace flywheel::runtime {
namespace {

constexpr uint32_t kSlots = 4;
constexpr int64_t kSlotBytes = 256 * 1024;
constexpr int64_t kLineBytes = 64;
// Up to this much from all ranks together, every rank reduces everything, which saves a step.
constexpr int64_t kSmallBytes = 128 * 1024;
constexpr uint32_t kPieces = 4;  // of a send on its way
constexpr int64_t kPieceBytes = 64 * 1024;

struct RankControl {
  ShmSignal staged, reduced, done;
  uint64_t signatures[kSlots];  // of the collective that the slot's chunk belongs to
};

// From one rank to another.
struct Channel {
  ShmSignal sent, received;
  uint64_t signatures[kPieces];
  alignas(4096) char pieces[kPieces][kPieceBytes];
};

int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

class ShmTransport final : public CollectiveTransport {
 public:
  ShmTransport(const Group& group, std::unique_ptr<ShmSegment> segment)
      : group_(group),
        rank_(group.rank),
        size_(group.size()),
        segment_(std::move(segment)),
        reduce_(reduce_in_rank_order(isa())),
        channel_use_(static_cast<size_t>(2 * size_)) {}

  static int64_t data_bytes(int64_t size) {
    return controls_bytes(size) + size * kSlots * kSlotBytes +
           size * size * static_cast<int64_t>(sizeof(Channel));
  }

  const char* name() const override { return "shared memory"; }
  const std::string& address() const override { return segment_->address(); }
  Result<void> connect(const std::vector<std::string>& addresses, Deadline deadline) override {
    return explained(segment_->join(addresses[0], deadline));
  }
  void abort(const std::string& why) override { segment_->abort(fmt::format("rank {}: {}", rank_, why)); }
  bool broken() const override { return segment_->aborted(); }

  Result<void> collective(const Collective& collective, Deadline deadline) override {
    signature_ = signature(collective);
    deadline_ = deadline;
    return explained(std::visit([&](const auto& op) { return perform(op); }, collective));
  }
  Result<void> send(const Send& send, Deadline deadline) override {
    return explained(stream_out(send, deadline));
  }
  Result<void> recv(const Recv& recv, Deadline deadline) override {
    return explained(stream_in(recv, deadline));
  }

 private:
  static int64_t controls_bytes(int64_t size) {
    return round_up(size * static_cast<int64_t>(sizeof(RankControl)), 4096);
  }
  RankControl& control(int rank) const { return reinterpret_cast<RankControl*>(segment_->data())[rank]; }
  char* slot(int rank, uint32_t chunk) const {
    return segment_->data() + controls_bytes(size_) + (rank * int64_t{kSlots} + chunk % kSlots) * kSlotBytes;
  }
  Channel& channel(int from, int to) const {
    char* channels = segment_->data() + controls_bytes(size_) + size_ * int64_t{kSlots} * kSlotBytes;
    return reinterpret_cast<Channel*>(channels)[from * size_ + to];
  }

  // Names the member, and breaks the group for all: the ranks no longer agree on where they are.
  Result<void> explained(Result<void> result) {
    if (result.ok()) return result;
    abort(result.error().message);
    return make_error(result.error().code, "{}: {}", describe(group_), result.error().message);
  }

  // Waits until every other rank's signal has reached `target`.
  Result<void> wait_for_all(ShmSignal RankControl::*signal, uint32_t target) {
    for (int step = 1; step < size_; ++step) {
      const int peer = (rank_ + step) % size_;
      RETURN_IF_ERROR(segment_->wait(control(peer).*signal, target, peer, deadline_));
    }
    return {};
  }
  Result<void> check_signature(uint64_t theirs, uint64_t ours, int peer) {
    if (theirs == ours) return {};
    return make_error(ErrorCode::kInvalid,
                      "rank {} called {} while rank {} called {}: all ranks must issue the same operations "
                      "in the same order",
                      peer, describe_signature(theirs), rank_, describe_signature(ours));
  }
  Result<void> wait_staged(uint32_t chunk, int peer) {
    RETURN_IF_ERROR(segment_->wait(control(peer).staged, chunk + 1, peer, deadline_));
    return check_signature(control(peer).signatures[chunk % kSlots], signature_, peer);
  }
  Result<void> wait_all_staged(uint32_t chunk) {
    for (int step = 1; step < size_; ++step) RETURN_IF_ERROR(wait_staged(chunk, (rank_ + step) % size_));
    return {};
  }

  // The three steps over `chunks` chunks. Each callback gets the chunk's number within the operation and its
  // number over all operations, which all ranks count alike.
  template <typename Stage, typename Share, typename Collect>
  Result<void> pipeline(int64_t chunks, Stage&& stage, Share&& share, Collect&& collect) {
    if (segment_->aborted()) return segment_->abort_error();
    const uint32_t base = next_chunk_;
    RankControl& mine = control(rank_);
    for (int64_t step = 0; step < chunks + 2; ++step) {
      if (step < chunks) {
        const uint32_t chunk = base + static_cast<uint32_t>(step);
        RETURN_IF_ERROR(wait_for_all(&RankControl::done, chunk + 1 - kSlots));
        mine.signatures[chunk % kSlots] = signature_;
        stage(step, chunk);
        mine.staged.publish(chunk + 1);
      }
      if (step >= 1 && step - 1 < chunks) {
        const uint32_t chunk = base + static_cast<uint32_t>(step - 1);
        RETURN_IF_ERROR(share(step - 1, chunk));
        mine.reduced.publish(chunk + 1);
      }
      if (step >= 2) {
        const uint32_t chunk = base + static_cast<uint32_t>(step - 2);
        RETURN_IF_ERROR(collect(step - 2, chunk));
        mine.done.publish(chunk + 1);
      }
    }
    next_chunk_ = base + static_cast<uint32_t>(chunks);
    return {};
  }
  static Result<void> nothing(int64_t, uint32_t) { return {}; }

  // Chunks of `per_chunk` bytes; at least one, so that an empty operation still meets its peers.
  static int64_t chunk_count(int64_t bytes, int64_t per_chunk) {
    return std::max<int64_t>(1, (bytes + per_chunk - 1) / per_chunk);
  }
  static Range chunk_range(int64_t index, int64_t per_chunk, int64_t bytes) {
    return {std::min(index * per_chunk, bytes), std::min((index + 1) * per_chunk, bytes)};
  }
  // Rank r's slice of a chunk, in whole cache lines.
  Range slice(int rank, int64_t chunk_bytes) const {
    const int64_t per_rank = round_up((chunk_bytes + size_ - 1) / size_, kLineBytes);
    return {std::min(rank * per_rank, chunk_bytes), std::min((rank + 1) * per_rank, chunk_bytes)};
  }
  // Reduces over the ranks: `mine` here, and `offset` bytes into the others' slots.
  void reduce(Element element, Reduce reduce, void* out, void* also, const char* mine, int64_t offset,
              uint32_t chunk, int64_t bytes) {
    inputs_.resize(static_cast<size_t>(size_));
    for (int rank = 0; rank < size_; ++rank) {
      inputs_[static_cast<size_t>(rank)] = rank == rank_ ? mine : slot(rank, chunk) + offset;
    }
    reduce_(element, reduce, out, also, inputs_.data(), size_, bytes / element_bytes(element));
  }

  Result<void> perform(const AllReduce& op) {
    const auto* in = static_cast<const char*>(op.in.data);
    auto* out = static_cast<char*>(op.out.data);
    const int64_t bytes = op.in.bytes();
    if (bytes * size_ <= kSmallBytes) {
      return pipeline(
          1, [&](int64_t, uint32_t chunk) { copy(slot(rank_, chunk), in, bytes); },
          [&](int64_t, uint32_t chunk) -> Result<void> {
            RETURN_IF_ERROR(wait_all_staged(chunk));
            // From the own slot, as `out` may be `in`.
            reduce(op.in.element, op.reduce, out, nullptr, slot(rank_, chunk), 0, chunk, bytes);
            return {};
          },
          nothing);
    }
    return pipeline(
        chunk_count(bytes, kSlotBytes),
        [&](int64_t index, uint32_t chunk) {
          const Range range = chunk_range(index, kSlotBytes, bytes), own = slice(rank_, range.size());
          char* to = slot(rank_, chunk);
          const char* from = in + range.begin;
          copy(to, from, own.begin);
          copy(to + own.end, from + own.end, range.size() - own.end);
        },
        [&](int64_t index, uint32_t chunk) -> Result<void> {
          const Range range = chunk_range(index, kSlotBytes, bytes), own = slice(rank_, range.size());
          RETURN_IF_ERROR(wait_all_staged(chunk));
          const int64_t at = range.begin + own.begin;
          reduce(op.in.element, op.reduce, out + at, slot(rank_, chunk) + own.begin, in + at, own.begin,
                 chunk, own.size());
          return {};
        },
        [&](int64_t index, uint32_t chunk) -> Result<void> {
          const Range range = chunk_range(index, kSlotBytes, bytes);
          for (int step = 1; step < size_; ++step) {
            const int peer = (rank_ + step) % size_;
            RETURN_IF_ERROR(segment_->wait(control(peer).reduced, chunk + 1, peer, deadline_));
            const Range theirs = slice(peer, range.size());
            copy(out + range.begin + theirs.begin, slot(peer, chunk) + theirs.begin, theirs.size());
          }
          return {};
        });
  }

  // reduce_scatter and all_to_all: the message is N parts, and a chunk takes the same piece of each.
  int64_t piece_bytes() const { return kSlotBytes / size_ / kLineBytes * kLineBytes; }
  void stage_parts(const char* in, int64_t part_bytes, Range range, uint32_t chunk) {
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      copy(slot(rank_, chunk) + peer * piece_bytes(), in + peer * part_bytes + range.begin, range.size());
    }
  }

  Result<void> perform(const ReduceScatter& op) {
    const auto* in = static_cast<const char*>(op.in.data);
    auto* out = static_cast<char*>(op.out.data);
    const int64_t part = op.out.bytes(), piece = piece_bytes();
    return pipeline(
        chunk_count(part, piece),
        [&](int64_t index, uint32_t chunk) { stage_parts(in, part, chunk_range(index, piece, part), chunk); },
        [&](int64_t index, uint32_t chunk) -> Result<void> {
          const Range range = chunk_range(index, piece, part);
          RETURN_IF_ERROR(wait_all_staged(chunk));
          reduce(op.in.element, op.reduce, out + range.begin, nullptr, in + rank_ * part + range.begin,
                 rank_ * piece, chunk, range.size());
          return {};
        },
        nothing);
  }

  Result<void> perform(const AllToAll& op) {
    const auto* in = static_cast<const char*>(op.in.data);
    auto* out = static_cast<char*>(op.out.data);
    const int64_t part = op.in.bytes() / size_, piece = piece_bytes();
    copy(out + rank_ * part, in + rank_ * part, part);
    return pipeline(
        chunk_count(part, piece),
        [&](int64_t index, uint32_t chunk) { stage_parts(in, part, chunk_range(index, piece, part), chunk); },
        [&](int64_t index, uint32_t chunk) -> Result<void> {
          const Range range = chunk_range(index, piece, part);
          for (int step = 1; step < size_; ++step) {
            const int peer = (rank_ + step) % size_;
            RETURN_IF_ERROR(wait_staged(chunk, peer));
            copy(out + peer * part + range.begin, slot(peer, chunk) + rank_ * piece, range.size());
          }
          return {};
        },
        nothing);
  }

  Result<void> perform(const AllGather& op) {
    const auto* in = static_cast<const char*>(op.in.data);
    auto* out = static_cast<char*>(op.out.data);
    const int64_t part = op.in.bytes();
    if (out + rank_ * part != in) copy(out + rank_ * part, in, part);
    return pipeline(
        chunk_count(part, kSlotBytes),
        [&](int64_t index, uint32_t chunk) {
          const Range range = chunk_range(index, kSlotBytes, part);
          copy(slot(rank_, chunk), in + range.begin, range.size());
        },
        [&](int64_t index, uint32_t chunk) -> Result<void> {
          const Range range = chunk_range(index, kSlotBytes, part);
          for (int step = 1; step < size_; ++step) {
            const int peer = (rank_ + step) % size_;
            RETURN_IF_ERROR(wait_staged(chunk, peer));
            copy(out + peer * part + range.begin, slot(peer, chunk), range.size());
          }
          return {};
        },
        nothing);
  }

  Result<void> perform(const Broadcast& op) {
    auto* data = static_cast<char*>(op.buffer.data);
    const int64_t bytes = op.buffer.bytes();
    return pipeline(
        chunk_count(bytes, kSlotBytes),
        [&](int64_t index, uint32_t chunk) {
          const Range range = chunk_range(index, kSlotBytes, bytes);
          if (rank_ == op.root) copy(slot(rank_, chunk), data + range.begin, range.size());
        },
        [&](int64_t index, uint32_t chunk) -> Result<void> {
          if (rank_ == op.root) return {};
          const Range range = chunk_range(index, kSlotBytes, bytes);
          RETURN_IF_ERROR(wait_staged(chunk, op.root));
          copy(data + range.begin, slot(op.root, chunk), range.size());
          return {};
        },
        nothing);
  }

  Result<void> perform(const Barrier&) {
    return pipeline(
        1, [](int64_t, uint32_t) {}, [&](int64_t, uint32_t chunk) { return wait_all_staged(chunk); },
        nothing);
  }
  Result<void> perform(const Send&) { CHECK(false, "send() is not a collective"); }
  Result<void> perform(const Recv&) { CHECK(false, "recv() is not a collective"); }

  Result<void> stream_out(const Send& op, Deadline deadline) {
    if (segment_->aborted()) return segment_->abort_error();
    Channel& to = channel(rank_, op.to);
    uint32_t& next = channel_use_[static_cast<size_t>(op.to)];
    const auto* in = static_cast<const char*>(op.in.data);
    const uint64_t what = signature(op);
    for (int64_t index = 0; index < chunk_count(op.in.bytes(), kPieceBytes); ++index, ++next) {
      RETURN_IF_ERROR(segment_->wait(to.received, next + 1 - kPieces, op.to, deadline));
      const Range range = chunk_range(index, kPieceBytes, op.in.bytes());
      to.signatures[next % kPieces] = what;
      copy(to.pieces[next % kPieces], in + range.begin, range.size());
      to.sent.publish(next + 1);
    }
    return {};
  }

  Result<void> stream_in(const Recv& op, Deadline deadline) {
    if (segment_->aborted()) return segment_->abort_error();
    Channel& from = channel(op.from, rank_);
    uint32_t& next = channel_use_[static_cast<size_t>(size_ + op.from)];
    auto* out = static_cast<char*>(op.out.data);
    for (int64_t index = 0; index < chunk_count(op.out.bytes(), kPieceBytes); ++index, ++next) {
      RETURN_IF_ERROR(segment_->wait(from.sent, next + 1, op.from, deadline));
      const uint64_t expected = signature(Send{ConstBuffer(op.out), rank_});
      RETURN_IF_ERROR(check_signature(from.signatures[next % kPieces], expected, op.from));
      const Range range = chunk_range(index, kPieceBytes, op.out.bytes());
      copy(out + range.begin, from.pieces[next % kPieces], range.size());
      from.received.publish(next + 1);
    }
    return {};
  }

  static void copy(char* to, const char* from, int64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
  }

  const Group group_;
  const int rank_, size_;
  const std::unique_ptr<ShmSegment> segment_;
  const ReduceFn reduce_;
  uint32_t next_chunk_ = 0;
  std::vector<uint32_t> channel_use_;  // pieces sent to each rank, then pieces received from each
  std::vector<const void*> inputs_;
  uint64_t signature_ = 0;  // of the collective under way
  Deadline deadline_ = Deadline::never();
};

}  // namespace

Result<std::unique_ptr<CollectiveTransport>> open_shm_transport(const Group& group) {
  ASSIGN_OR_RETURN(auto segment, ShmSegment::open(group, ShmTransport::data_bytes(group.size())));
  return std::unique_ptr<CollectiveTransport>(std::make_unique<ShmTransport>(group, std::move(segment)));
}

}  // namespace flywheel::runtime
