// From raw files to the model and on: artifacts and the runs between them, drawn as a tree.
//
// Upstream, an artifact's one parent is the run that made it, and under it stand the inputs that were named
// for this artifact, or all of the run's when none were. Without a run the inputs stand under the artifact.
// Downstream is the same graph from the other end.
#include <set>

#include "base/progress.h"
#include "store/store.h"
#include "store/store_internal.h"

namespace flywheel::store {
namespace {

class LineageWalk {
 public:
  LineageWalk(Database& db, Store::Direction direction)
      : db_(db), up_(direction == Store::Direction::kUpstream) {}

  Result<LineageNode> artifact(int64_t id) {
    ASSIGN_OR_RETURN(const Artifact artifact, load_artifact(db_, id));
    LineageNode node{.what = LineageNode::What::kArtifact, .id = artifact.ref(), .kind = artifact.kind};
    node.detail = human_bytes(static_cast<double>(artifact.size_bytes));
    if (artifact.files.size() > 1) node.detail += fmt::format(" in {} files", artifact.files.size());
    if (artifact.metadata.contains("uri"))
      node.detail += " at " + artifact.metadata["uri"].get<std::string>();
    if (artifact.removed_ms != 0) node.detail += ", content removed";
    if (!seen_.insert(node.id).second) {
      node.repeated = true;
      return node;
    }
    return up_ ? upstream_of(artifact, std::move(node)) : downstream_of(artifact, std::move(node));
  }

 private:
  Result<Rows> ids(const std::string& sql, const Value& key) { return db_.execute(sql, {key}); }

  Result<void> add_artifacts(const Rows& rows, LineageNode& parent) {
    for (const Row& row : rows) {
      ASSIGN_OR_RETURN(LineageNode child, artifact(row.integer(0)));
      parent.children.push_back(std::move(child));
    }
    return {};
  }

  Result<LineageNode> run_node(const std::string& run) {
    ASSIGN_OR_RETURN(const Rows rows, db_.execute("SELECT kind, status FROM run WHERE id = $1", {run}));
    LineageNode node{.what = LineageNode::What::kRun, .id = run};
    if (!rows.empty()) node.kind = rows[0].text(0), node.detail = rows[0].text(1);
    return node;
  }

  Result<LineageNode> upstream_of(const Artifact& artifact, LineageNode node) {
    ASSIGN_OR_RETURN(Rows inputs,
                     ids("SELECT input FROM artifact_input WHERE artifact = $1 ORDER BY input", artifact.id));
    if (artifact.run.empty()) {
      RETURN_IF_ERROR(add_artifacts(inputs, node));
      return node;
    }
    ASSIGN_OR_RETURN(LineageNode run, run_node(artifact.run));
    if (inputs.empty()) {
      ASSIGN_OR_RETURN(inputs,
                       ids("SELECT artifact FROM run_input WHERE run = $1 ORDER BY artifact", artifact.run));
      // Two artifacts of one run stand on the same inputs: they are drawn once.
      run.repeated = !inputs.empty() && !seen_.insert("run " + run.id).second;
      if (run.repeated) inputs.clear();
    }
    RETURN_IF_ERROR(add_artifacts(inputs, run));
    node.children.push_back(std::move(run));
    return node;
  }

  // The artifacts made from this one, each under the run that made it; then runs that used it and made
  // nothing from it.
  Result<LineageNode> downstream_of(const Artifact& artifact, LineageNode node) {
    ASSIGN_OR_RETURN(const Rows made,
                     ids("SELECT a.id, a.run FROM artifact a WHERE a.id IN "
                         "(SELECT artifact FROM artifact_input WHERE input = $1) OR (a.run IN "
                         "(SELECT run FROM run_input WHERE artifact = $1) AND NOT EXISTS "
                         "(SELECT 1 FROM artifact_input i WHERE i.artifact = a.id)) ORDER BY a.id",
                         artifact.id));
    ASSIGN_OR_RETURN(const Rows runs,
                     ids("SELECT run FROM run_input WHERE artifact = $1 ORDER BY run", artifact.id));
    std::vector<std::string> order;
    for (const Row& row : made) order.push_back(row.text(1));
    for (const Row& row : runs) order.push_back(row.text(0));
    std::set<std::string> drawn;
    for (const std::string& run : order) {
      if (!drawn.insert(run).second) continue;
      Rows of_run;
      for (const Row& row : made) {
        if (row.text(1) == run) of_run.push_back(row);
      }
      if (run.empty()) {
        RETURN_IF_ERROR(add_artifacts(of_run, node));
        continue;
      }
      ASSIGN_OR_RETURN(LineageNode child, run_node(run));
      RETURN_IF_ERROR(add_artifacts(of_run, child));
      node.children.push_back(std::move(child));
    }
    return node;
  }

  Database& db_;
  bool up_;
  std::set<std::string> seen_;
};

void draw(const LineageNode& node, const std::string& before, const std::string& below, std::string& out) {
  const bool run = node.what == LineageNode::What::kRun;
  out += before + (run ? "run " : node.kind + " ") + node.id;
  if (run && !node.kind.empty()) out += " (" + node.kind + ")";
  if (!node.detail.empty()) out += "  " + node.detail;
  if (node.repeated) out += "  (see above)";
  out += "\n";
  for (size_t i = 0; i < node.children.size(); ++i) {
    const bool last = i + 1 == node.children.size();
    draw(node.children[i], below + (last ? "└─ " : "├─ "), below + (last ? "   " : "│  "), out);
  }
}

}  // namespace

Result<LineageNode> Store::lineage(const std::string& ref, Direction direction) {
  Database& db = *state_->db;
  return db.transact(Access::kRead, [&]() -> Result<LineageNode> {
    ASSIGN_OR_RETURN(const Artifact artifact, find_artifact(db, ref));
    return LineageWalk(db, direction).artifact(artifact.id);
  });
}

std::string draw_lineage(const LineageNode& root) {
  std::string out;
  draw(root, "", "", out);
  return out;
}

Json lineage_to_json(const LineageNode& root) {
  Json json = {{"what", root.what == LineageNode::What::kRun ? "run" : "artifact"},
               {"id", root.id},
               {"kind", root.kind},
               {"detail", root.detail}};
  if (root.repeated) json["repeated"] = true;
  json["children"] = Json::array();
  for (const LineageNode& child : root.children) json["children"].push_back(lineage_to_json(child));
  return json;
}

}  // namespace flywheel::store
