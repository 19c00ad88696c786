// flywheel ckpt: the checkpoints that are there, whether they are sound, and the same for another mesh.
#include <cstdio>

#include "base/file.h"
#include "base/progress.h"
#include "checkpoint_ref.h"
#include "cli.h"
#include "model/verify_weights.h"
#include "reshard.h"
#include "subcommands.h"
#include "table.h"

namespace flywheel::cli {
namespace {

using store::Artifact;
using store::Store;

struct Options {
  std::string run, checkpoint;
  bool json = false, removed = false;
  ReshardOptions reshard;
};

// Null where nothing was noted.
Json noted(const Artifact& artifact, const char* key) {
  return artifact.metadata.contains(key) ? artifact.metadata[key] : Json();
}

std::string text_of(const Json& value) {
  if (value.is_null()) return "-";
  return value.is_number_float() ? fmt::format("{:.4f}", value.get<double>()) : value.dump();
}

int list(const Options& options) {
  Store store = Store::open().value_or_throw();
  std::vector<Artifact> found =
      store.list_artifacts({.kind = "checkpoint", .removed = options.removed}).value_or_throw();
  if (!options.run.empty()) {
    const Result<store::RunInfo> run = store.run_info(options.run);
    if (!run.ok()) throw UserError(options.run, run.error(), "flywheel runs list shows runs");
    std::erase_if(found, [&](const Artifact& a) { return a.run != options.run; });
  }
  Json out = Json::array();
  std::vector<std::vector<std::string>> rows{
      {"CHECKPOINT", "RUN", "STEP", "LOSS", "SIZE", "ALIASES", "CREATED"}};
  for (const Artifact& artifact : found) {
    const Json loss = noted(artifact, "loss");
    rows.push_back(
        {artifact.ref(), artifact.run.empty() ? "-" : artifact.run, text_of(noted(artifact, "step")),
         text_of(loss),
         artifact.removed_ms != 0 ? "removed" : human_bytes(static_cast<double>(artifact.size_bytes)),
         fmt::format("{}", fmt::join(artifact.aliases, ", ")), format_time(artifact.created_ms)});
    out.push_back({{"ref", artifact.ref()},
                   {"run", artifact.run},
                   {"step", noted(artifact, "step")},
                   {"loss", loss},
                   {"size_bytes", artifact.size_bytes},
                   {"aliases", artifact.aliases},
                   {"created_ms", artifact.created_ms},
                   {"removed_ms", artifact.removed_ms}});
  }
  if (options.json) {
    print_json(out);
    return 0;
  }
  std::fputs(format_table(rows).c_str(), stdout);
  if (found.empty())
    std::fprintf(stderr,
                 "none; checkpoint.every_steps in a training's config says how often one is written\n");
  return 0;
}

// An artifact's files by the store's SHA-256 first: then what else is wrong is no damage of the disk.
int verify(const Options& options) {
  const CheckpointRef named = find_checkpoint(options.checkpoint);
  std::vector<std::string> problems;
  if (!named.artifact.empty()) {
    Store store = Store::open().value_or_throw();
    const Artifact artifact = store.resolve(named.artifact).value_or_throw();
    const auto path = store.path_of(artifact, Store::Verify::kYes);
    if (!path.ok()) problems.push_back(path.error().message);
  }
  const model::WeightsReport report = model::verify_weights(named.path).value_or_throw();
  problems.insert(problems.end(), report.problems.begin(), report.problems.end());
  if (options.json) {
    print_json({{"path", named.path},
                {"artifact", named.artifact},
                {"format", model::weight_format_name(report.format)},
                {"tensors", report.tensors},
                {"files_checked", report.files_checked},
                {"bytes_checked", report.bytes_checked},
                {"unchecked", report.unchecked},
                {"problems", problems}});
    return problems.empty() ? 0 : 1;
  }
  for (const std::string& problem : problems) std::printf("%s\n", problem.c_str());
  for (const std::string& file : report.unchecked) {
    std::fprintf(stderr, "%s: has no checksum of its own%s\n", file.c_str(),
                 named.artifact.empty() ? "" : "; the store's SHA-256 was compared");
  }
  std::printf("%s: %s, %s tensors, %s checked: %s\n", options.checkpoint.c_str(),
              model::weight_format_name(report.format), human_count(report.tensors).c_str(),
              human_bytes(static_cast<double>(report.bytes_checked)).c_str(),
              problems.empty() ? "sound" : fmt::format("{} problems", problems.size()).c_str());
  return problems.empty() ? 0 : 1;
}

#ifdef FLYWHEEL_TORCH
void add_reshard(Subcommands<Options>& subcommands, ReshardOptions& options) {
  CLI::App* command = subcommands.add(
      "reshard", "Write a checkpoint anew, in shards as the workers of another mesh or ZeRO stage hold it",
      [](const Options& given) { return reshard(given.reshard, given.json); },
      "  flywheel ckpt reshard tiny-7 --set mesh.data=4 --set mesh.zero=2 --name tiny-of-4\n"
      "  flywheel ckpt reshard tiny-checkpoint:3 --set mesh.tensor=2 --out shards/\n"
      "  flywheel ckpt reshard shards/ --set mesh.tensor=1 --set mesh.data=1 --out of_1/   and back, byte "
      "for byte\n"
      "  flywheel ckpt reshard deepspeed_run/ --config train.yaml --name imported   weights, Adam's moments "
      "and step\n"
      "  flywheel train examples/tiny.yaml --set checkpoint.from=tiny-of-4 --set mesh.data=4 --set "
      "mesh.zero=2\n");
  command
      ->add_option("checkpoint", options.source,
                   "A run, an artifact's name, or a checkpoint's folder; also one of DeepSpeed (ZeRO 1 to 3) "
                   "or of torch.distributed.checkpoint, with --config")
      ->required();
  command->add_option("--set", options.overrides, "mesh.KEY=VALUE over the run's config: --set mesh.data=4")
      ->allow_extra_args(false);
  command->add_option("--out,-o", options.out, "A new folder for it");
  command->add_option("--name", options.name, "Make it an artifact of this name, with its lineage");
  command->add_option("--config", options.config,
                      "The training config of its run, for a folder whose run the store does not know");
}
#endif

int verb_ckpt(const std::vector<std::string>& args) {
  App app{"Look after checkpoints: which there are, whether they are sound, and the same for another mesh."};
  app.footer(
      "  flywheel ckpt list tiny-7                  those of one run\n"
      "  flywheel ckpt verify tiny-7                its newest one, every byte\n"
      "  flywheel ckpt verify deepspeed_run/        what others wrote, too\n"
#ifdef FLYWHEEL_TORCH
      "  flywheel ckpt reshard tiny-7 --set mesh.data=4 --set mesh.zero=2 --out of_4/   for other workers\n"
#endif
      "  flywheel export tiny-7 --out tiny/         the model of one, for others\n");
  Options options;
  Subcommands<Options> subcommands(app, options);
  CLI::App* command = subcommands.add("list", "The checkpoints that are there", list,
                                      "  flywheel ckpt list\n"
                                      "  flywheel ckpt list tiny-7 --removed --json\n");
  command->add_option("run", options.run, "Only those of this run");
  command->add_flag("--removed", options.removed, "Also those that were given up (checkpoint.keep)");
  subcommands
      .add("verify", "Read everything and compare checksums; exit 1 when something is wrong", verify,
           "  flywheel ckpt verify tiny-checkpoint:3\n"
           "  flywheel ckpt verify ./pytorch_model.bin --json\n")
      ->add_option("checkpoint", options.checkpoint,
                   "A run, an artifact's name, or a checkpoint's file or folder")
      ->required();
#ifdef FLYWHEEL_TORCH
  add_reshard(subcommands, options.reshard);
#endif
  if (auto exit = parse(app, "ckpt", args)) return *exit;
  return subcommands.run();
}

REGISTER_VERB(ckpt, "Checkpoints: list, verify, reshard", verb_ckpt);

}  // namespace
}  // namespace flywheel::cli
