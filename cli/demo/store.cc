// Part 3: what the store knows of the model: its versions and where it came from.
#include <cstdio>

#include "base/progress.h"
#include "demo/demo.h"

namespace flywheel::cli::demo {

bool has(Context& context, const std::string& ref) {
  return context.store.resolve(ref).ok();
}

void run_store(Context& context) {
  if (!has(context, kModel)) run_train(context);
  heading("store: what was made, and from what");
  const store::Artifact model = context.store.resolve(kModel).value_or_throw("store");
  std::printf("$ flywheel store lineage %s\n", model.ref().c_str());
  const store::LineageNode tree = context.store.lineage(model.ref()).value_or_throw("store");
  std::printf("%s\n", store::draw_lineage(tree).c_str());
  OrderedJson& figures = context.figures["store"];
  figures = {{"model", model.ref()}, {"digest", model.digest}, {"size_bytes", model.size_bytes}};
  figures["lineage"] = store::lineage_to_json(tree);
}

}  // namespace flywheel::cli::demo
