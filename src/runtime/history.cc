#include "runtime/history.h"

#include <algorithm>

namespace flywheel::runtime {

void DoneAgain::go_back(const CallCounts& calls) {
  if (new_result_) {
    before_ = total();
    last_.clear();
    new_result_ = false;
  }
  for (const auto& [operation, times] : calls) last_[operation] = std::max(last_[operation], times);
}

CallCounts DoneAgain::total() const {
  CallCounts all = before_;
  for (const auto& [operation, times] : last_) all[operation] += times;
  return all;
}

LoggedCall* History::find(uint64_t sequence) {
  if (sequence < first || sequence > last()) return nullptr;
  return &calls[sequence - first];
}

CallCounts History::after(uint32_t mesh, uint64_t watermark) const {
  CallCounts counts;
  for (size_t i = watermark >= first ? watermark - first + 1 : 0; i < calls.size(); ++i) {
    const LoggedCall& call = calls[i];
    if (call.command.mesh != mesh || call.command.kind == Kind::kNondeterministic || !call.result) continue;
    if (std::ranges::any_of(call.result->outcomes, &Outcome::failed)) continue;
    ++counts[call.command.operation];
  }
  return counts;
}

Result<History> read_history(const LogContent& content) {
  History history;
  for (const LogRecord& record : content.records) {
    const auto bad = [&](const std::string& what) {
      return make_error(ErrorCode::kCorrupt, "command log: record in the frame at byte {}: {}", record.offset,
                        what);
    };
    const auto read = [&]<typename T>(T& into) -> Result<void> {
      auto decoded = decode<T>(record.bytes);
      if (!decoded.ok()) return bad(decoded.error().message);
      into = std::move(decoded).value();
      return {};
    };
    switch (record.type) {
      case RecordType::kRun: {
        RunRecord run;
        RETURN_IF_ERROR(read(run));
        if (run.version != RunRecord().version) {
          return make_error(ErrorCode::kInvalid, "the command log has version {}, this program reads {}",
                            run.version, RunRecord().version);
        }
        if (!history.run) history.run = run;
        ++history.takes;
        history.closed = false;
        break;
      }
      case RecordType::kMesh: {
        MeshRecord mesh;
        RETURN_IF_ERROR(read(mesh));
        history.meshes[mesh.mesh].record = mesh;
        break;
      }
      case RecordType::kEpoch: {
        EpochRecord epoch;
        RETURN_IF_ERROR(read(epoch));
        LoggedMesh& mesh = history.meshes[epoch.mesh];
        mesh.epoch = epoch.epoch;
        mesh.done_again.go_back(history.after(epoch.mesh, epoch.watermark));
        break;
      }
      case RecordType::kCommand: {
        LoggedCall call;
        RETURN_IF_ERROR(read(call.command));
        if (call.command.sequence != history.last() + 1) {
          return bad(fmt::format("command {} after {}", call.command.sequence, history.last()));
        }
        history.calls.push_back(std::move(call));
        break;
      }
      case RecordType::kResult: {
        ResultRecord result;
        RETURN_IF_ERROR(read(result));
        LoggedCall* call = history.find(result.sequence);
        if (call == nullptr)
          return bad(fmt::format("a result of command {}, which is not there", result.sequence));
        if (call->result) break;
        call->result = std::move(result);
        history.meshes[call->command.mesh].done_again.note_new_result();
        break;
      }
      case RecordType::kValue: {
        ValueRecord value;
        RETURN_IF_ERROR(read(value));
        LoggedCall* call = history.find(value.sequence);
        if (call == nullptr || !call->result || value.index < 0 ||
            static_cast<size_t>(value.index) >= call->result->outcomes.size()) {
          return bad(fmt::format("a value of command {}, which has no result", value.sequence));
        }
        Outcome& outcome = call->result->outcomes[static_cast<size_t>(value.index)];
        outcome.has_value = true;
        outcome.value = std::move(value.value);
        break;
      }
      case RecordType::kWatermark: {
        WatermarkRecord watermark;
        RETURN_IF_ERROR(read(watermark));
        if (watermark.durable) history.meshes[watermark.mesh].durable.push_back(watermark.watermark);
        break;
      }
      case RecordType::kMeshClose: {
        MeshCloseRecord close;
        RETURN_IF_ERROR(read(close));
        history.meshes[close.mesh].closed = close;
        break;
      }
      case RecordType::kClose:
        history.closed = true;
        break;
      default:
        return bad(fmt::format("unknown type {}", static_cast<int>(record.type)));
    }
  }
  return history;
}

}  // namespace flywheel::runtime
