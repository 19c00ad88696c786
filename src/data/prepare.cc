#include "data/prepare.h"

#include <filesystem>
#include <optional>

#include "base/config.h"
#include "base/deadline.h"
#include "base/file_lock.h"
#include "base/hash.h"
#include "data/record_internal.h"
#include "data/refusals.h"
#include "data/stage_internal.h"

namespace flywheel::data {
namespace {

// Raised when a stage's code changes what it writes: older results are then made again.
constexpr const char* kVersion = "1";

struct Keys {
  std::string extract, clean, dedup, tokenizer, shards;
};

Keys make_keys(const DataConfig& config, const std::string& inputs_digest) {
  Keys keys;
  keys.extract = stage_key({kVersion, inputs_digest, dump_config(config.input), dump_config(config.extract)});
  keys.clean = stage_key({keys.extract, dump_config(config.unicode), dump_config(config.quality)});
  keys.dedup = stage_key({keys.clean, dump_config(config.dedup), config.parquet ? "parquet" : ""});
  std::string given;
  if (!config.tokenizer.path.empty()) given = sha256_file(tokenizer_file(config.tokenizer)).value_or("");
  keys.tokenizer = stage_key({keys.dedup, dump_config(config.tokenizer), given});
  keys.shards = stage_key({keys.tokenizer, dump_config(config.shards)});
  return keys;
}

Result<void> join_files(const std::string& to, const std::vector<std::string>& from) {
  ASSIGN_OR_RETURN(AtomicFile out, AtomicFile::create(to));
  for (const std::string& name : from) {
    ASSIGN_OR_RETURN(const std::string bytes, read_file(name));
    RETURN_IF_ERROR(out.write(bytes));
  }
  return out.commit();
}

// What follows extraction.
Result<void> run_stages(StageContext& context, const Keys& keys) {
  RETURN_IF_ERROR(clean_stage(context, keys.clean));
  RETURN_IF_ERROR(dedup_stage(context, keys.dedup));
  RETURN_IF_ERROR(join_files(context.path("dropped.jsonl"), {context.path("stages/extract.dropped.jsonl"),
                                                             context.path("stages/clean.dropped.jsonl"),
                                                             context.path("stages/dedup.dropped.jsonl")}));
  RETURN_IF_ERROR(
      join_files(context.path("quarantined.jsonl"), {context.path("stages/extract.quarantined.jsonl")}));
  if (context.report.stages.back().documents_out == 0) {
    RETURN_IF_ERROR(write_report(context.request.output, context.report));
    ASSIGN_OR_RETURN(const MappedFile dropped, MappedFile::open(context.path("dropped.jsonl")));
    const std::vector<Refusals> rules = refusals(dropped.bytes());
    throw UserError("data", "no document is left after cleaning",
                    (rules.empty() ? "the input has none"
                                   : describe_refusals(rules, context.report.stages.front().documents_in) +
                                         " (another rule may refuse it then)") +
                        "; `flywheel data report " + context.request.output + "` has them all");
  }
  RETURN_IF_ERROR(tokenizer_stage(context, keys.tokenizer));
  return shards_stage(context, keys.shards);
}

void log_metrics(store::Run& run, const PrepareReport& report) {
  for (size_t i = 0; i < report.stages.size(); ++i) {
    const StageReport& stage = report.stages[i];
    const auto step = static_cast<int64_t>(i);
    run.log_metric("flywheel_data_" + stage.name + "_documents", step,
                   static_cast<double>(stage.documents_out));
    run.log_metric("flywheel_data_" + stage.name + "_bytes", step, static_cast<double>(stage.bytes_out));
    run.log_metric("flywheel_data_" + stage.name + "_seconds", step, stage.seconds);
  }
}

}  // namespace

Result<FileLock> take_output(const std::string& output) {
  const bool is_dataset = path_exists(output + "/stages") || path_exists(output + "/report.json");
  for (const char* name :
       {"documents.jsonl", "documents.parquet", "dropped.jsonl", "quarantined.jsonl", "clusters.jsonl",
        "inputs.jsonl", "tokenizer", "shards", "report.md", "config.yaml"}) {
    if (is_dataset || !path_exists(output + "/" + name)) continue;
    throw UserError("--output",
                    fmt::format("{} is no dataset, and has a {} that would be lost", output, name),
                    "give a new folder, or one with a prepared dataset");
  }
  Result<FileLock> lock = FileLock::take(output + "/stages/prepare.lock", Deadline::after_ms(0));
  if (!lock.ok() && lock.error().code == ErrorCode::kDeadline) {
    return make_error(ErrorCode::kUnavailable,
                      "another `flywheel data` is writing to {}; wait for it, or give another --output",
                      output);
  }
  if (lock.ok()) RETURN_IF_ERROR(remove_unfinished(output));
  return lock;
}

Result<void> write_inputs(const std::string& path, const std::vector<HashedInput>& inputs) {
  std::string lines;
  for (const HashedInput& input : inputs) {
    const OrderedJson json = {{"file", input.file}, {"bytes", input.size_bytes}, {"sha256", input.sha256}};
    lines += json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
  }
  return write_file(path, lines);
}

Result<void> write_report(const std::string& output, const PrepareReport& report) {
  RETURN_IF_ERROR(write_file(output + "/report.json", to_json(report).dump(1) + "\n"));
  return write_file(output + "/report.md", to_text(report));
}

Result<void> prepare_around(const Preparation& preparation, PrepareReport& report,
                            const std::function<Result<void>(store::Run*)>& work) {
  RETURN_IF_ERROR(write_file(preparation.output + "/config.yaml", preparation.config));
  report.files = std::ssize(preparation.inputs.files);
  report.skipped = preparation.inputs.skipped;
  for (const InputFile& file : preparation.inputs.files)
    report.bytes += static_cast<int64_t>(file.size_bytes);
  std::optional<store::Run> run;
  if (preparation.store != nullptr) {
    ASSIGN_OR_RETURN(store::Run made,
                     preparation.store->create_run(
                         {.name = preparation.name, .kind = "data", .config = preparation.config}));
    run = std::move(made);
  }
  try {
    if (Result<void> done = work(run ? &*run : nullptr); !done.ok()) {
      if (run) (void)run->finish(store::RunStatus::kFailed, done.error().message);
      return done;
    }
  } catch (const UserError& error) {
    if (run) (void)run->finish(store::RunStatus::kFailed, error.what());
    throw;
  }
  return run ? run->finish(store::RunStatus::kFinished) : Result<void>();
}

Result<PrepareReport> prepare(const PrepareRequest& as_given, ThreadPool& pool) {
  PrepareRequest request = as_given;
  std::string& tokenizer = request.config.tokenizer.path;  // as it is recorded: read again from any folder
  if (path_exists(tokenizer)) tokenizer = std::filesystem::absolute(tokenizer).lexically_normal().string();
  if (request.inputs.empty()) throw UserError("--input", "at least one folder, file or pattern is needed");
  if (request.output.empty()) throw UserError("--output", "a folder for the dataset is needed");
  check(request.config);
  store::check_name(request.config.name).value_or_throw("name");
  if (request.store != nullptr) RETURN_IF_ERROR(check_names(request));
  const Stopwatch clock;
  InputList inputs = list_inputs(request.inputs, request.config.input, request.output);
  ASSIGN_OR_RETURN(const FileLock lock, take_output(request.output));
  PrepareReport report;
  report.rules = rules_of(request.config);
  StageContext context{request, pool, report};
  const auto work = [&](store::Run* run) -> Result<void> {
    const std::string fetched = context.path("stages/fetched");
    ASSIGN_OR_RETURN(const std::vector<HashedInput> hashed, fetch_inputs(inputs, fetched, pool));
    RETURN_IF_ERROR(write_inputs(context.path("inputs.jsonl"), hashed));
    const Keys keys = make_keys(request.config, digest_of(hashed));
    RETURN_IF_ERROR(extract_stage(context, inputs, keys.extract));
    RETURN_IF_ERROR(remove_all(fetched));
    RETURN_IF_ERROR(run_stages(context, keys));
    report.seconds = clock.seconds();
    RETURN_IF_ERROR(write_report(request.output, report));
    if (run == nullptr) return {};
    RETURN_IF_ERROR(record_artifacts(request, hashed, keys.shards, *run, report));
    log_metrics(*run, report);
    return {};
  };
  RETURN_IF_ERROR(prepare_around({.output = request.output,
                                  .name = request.config.name,
                                  .config = dump_config(request.config),
                                  .store = request.store,
                                  .inputs = inputs},
                                 report, work));
  if (request.store != nullptr) {  // with the artifacts
    report.seconds = clock.seconds();
    RETURN_IF_ERROR(write_report(request.output, report));
  }
  return report;
}

Result<PrepareReport> read_report(const std::string& output) {
  const std::string path = output + "/report.json";
  if (!path_exists(path)) {
    return make_error(ErrorCode::kNotFound,
                      "{}: no report.json; run `flywheel data prepare --output {}` first", output, output);
  }
  ASSIGN_OR_RETURN(const std::string text, read_file(path));
  ASSIGN_OR_RETURN(const OrderedJson json, parse_ordered_json(text));
  return report_from_json(json);
}

}  // namespace flywheel::data
