// The functions that every template has: range, dict, namespace, raise_exception, strftime_now, ...
#include "model/jinja_render.h"

namespace flywheel::model::jinja {

using Given = const Arguments&;

std::string Renderer::time_text(const std::string& format) const {
  std::string buffer(format.size() * 16 + 256, '\0');
  if (format.size() > 1000) fail("a time format of more than 1000 bytes");
  buffer.resize(std::strftime(buffer.data(), buffer.size(), format.c_str(), &now_));
  return buffer;
}

std::map<std::string, Value> make_globals(Renderer&, std::vector<std::weak_ptr<Namespace>>& namespaces) {
  std::map<std::string, Value> globals;
  const auto add = [&](const std::string& name, std::function<Value(Renderer&, Given)> call) {
    globals[name] = std::make_shared<const Callable>(Callable{name, std::move(call)});
  };
  add("raise_exception", [](Renderer&, Given given) -> Value {
    const Value* message = given.find(0, "message");
    if (!message) fail("raise_exception() missing 1 required positional argument: 'message'");
    fail(message->str());
  });
  add("strftime_now", [](Renderer& renderer, Given given) -> Value {
    const Value* format = given.find(0, "format");
    if (!format || !format->is_string()) fail("strftime_now needs a format");
    return renderer.time_text(format->text());
  });
  const auto pairs_from = [](Given given) {
    Pairs pairs;
    if (!given.positional.empty()) {
      const Value& from = given.positional[0];
      if (from.is_dict()) {
        pairs = from.dict().pairs;
      } else {
        for (const Value& entry : from.iterate()) {
          const Items pair = entry.iterate();
          if (pair.size() != 2) fail("dict() needs pairs");
          pairs.emplace_back(pair[0], pair[1]);
        }
      }
    }
    for (const auto& [name, value] : given.named) pairs.emplace_back(name, value);
    return pairs;
  };
  add("dict", [pairs_from](Renderer&, Given given) { return Value::dict(pairs_from(given)); });
  add("namespace", [pairs_from, &namespaces](Renderer&, Given given) -> Value {
    auto space = std::make_shared<Namespace>();
    const Value attributes = Value::dict(pairs_from(given));
    for (const auto& [name, value] : attributes.dict().pairs) {
      if (name.str().starts_with('_')) {
        fail(fmt::format(
            "Chat templates cannot store underscore-prefixed attributes on a namespace, but got {}. "
            "Please rename the attribute.",
            name.repr()));
      }
      space->attributes.emplace_back(name.str(), value);
    }
    namespaces.push_back(space);
    return space;
  });
  add("range", [](Renderer& renderer, Given given) -> Value {
    constexpr int64_t kMostNumbers = 100'000;
    int64_t bounds[3] = {0, 0, 1};
    const size_t n = given.positional.size();
    if (n < 1 || n > 3) fail(fmt::format("range expected 1 to 3 arguments, got {}", n));
    for (size_t i = 0; i < n; ++i) {
      const Value& value = given.positional[i];
      value.require_defined();
      if (!value.is_integral())
        fail(fmt::format("'{}' object cannot be interpreted as an integer", value.type_name()));
      bounds[n == 1 ? 1 : i] = value.integer();
    }
    if (bounds[2] == 0) fail("range() arg 3 must not be zero");
    Items items;
    for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1];) {
      renderer.step();
      if (static_cast<int64_t>(items.size()) >= kMostNumbers) {
        fail(fmt::format("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({}).",
                         kMostNumbers));
      }
      items.emplace_back(i);
      if (__builtin_add_overflow(i, bounds[2], &i)) break;
    }
    return Value::list(std::move(items));
  });
  return globals;
}

}  // namespace flywheel::model::jinja
