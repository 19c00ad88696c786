#include "model/chat_template.h"

#include "model/jinja_render.h"

namespace flywheel::model {

struct ChatTemplate::Tree {
  jinja::Body body;
};

namespace {

Error as_error(const jinja::JinjaError& error, const char* doing) {
  const std::string where = error.line > 0 ? fmt::format(" (line {})", error.line) : "";
  return make_error(ErrorCode::kInvalid, "{}{}: {}", doing, where, error.what());
}

std::tm local_now() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return local;
}

}  // namespace

Result<ChatTemplate> ChatTemplate::parse(std::string_view source) {
  constexpr size_t kMostBytes = 4 << 20;
  if (source.size() > kMostBytes) {
    return make_error(ErrorCode::kInvalid, "chat template: {} bytes; at most {} are read", source.size(),
                      kMostBytes);
  }
  try {
    auto tree = std::make_shared<Tree>();
    tree->body = jinja::parse_template(source);
    ChatTemplate chat;
    chat.tree_ = std::move(tree);
    return chat;
  } catch (const jinja::JinjaError& error) {
    return as_error(error, "chat template");
  }
}

Result<std::string> ChatTemplate::render(const OrderedJson& messages, const ChatOptions& options) const {
  OrderedJson variables = {{"messages", messages},
                           {"tools", options.tools},
                           {"documents", options.documents},
                           {"add_generation_prompt", options.add_generation_prompt}};
  for (const auto& [name, value] : options.extra.items()) {
    if (variables.contains(name)) {
      return make_error(ErrorCode::kInvalid, "chat template variable `{}` is set by its own option", name);
    }
    variables[name] = value;
  }
  return render_variables(variables, options);
}

Result<std::string> ChatTemplate::render_variables(const OrderedJson& variables,
                                                   const ChatOptions& options) const {
  try {
    std::vector<std::pair<std::string, jinja::Value>> values;
    for (const auto& [name, value] : variables.items())
      values.emplace_back(name, jinja::Value::from_json(value));
    jinja::Limits limits;
    limits.steps = options.max_steps;
    limits.output_bytes = options.max_text_bytes;
    limits.deadline = options.deadline;
    return jinja::Renderer(limits, options.now.value_or(local_now())).render(tree_->body, values);
  } catch (const jinja::JinjaError& error) {
    return as_error(error, "chat template");
  }
}

}  // namespace flywheel::model
