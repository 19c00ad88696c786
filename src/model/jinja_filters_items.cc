// The filters over elements: of lists, of dicts, of a text's characters.
#include <algorithm>

#include "model/jinja_filters_internal.h"
#include "model/jinja_text.h"

namespace flywheel::model::jinja {
namespace {

// "a.b.0" of a value.
Value nested(Renderer& renderer, Value value, const Value& path) {
  if (path.is_int()) return renderer.item(value, path);
  const std::string text = path.str();
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('.', at), text.size());
    const std::string part = text.substr(at, end - at);
    const bool number = !part.empty() && part.size() < 10 &&
                        std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    value = renderer.item(value, number ? Value(int64_t{std::stoi(part)}) : Value(part));
    at = end + 1;
  }
  return value;
}

// Without regard to case, as Jinja's sorting and comparing filters do unless told otherwise.
Value sort_key(const Value& value, bool case_sensitive) {
  return value.is_string() && !case_sensitive ? Value(lower_case(value.text())) : value;
}

// Sorted by `key`; comparing what cannot be compared throws.
template <typename Key>
void sort_by(Renderer& renderer, Items& items, bool reverse, Key&& key) {
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items) {
    renderer.step();
    Value by = key(item);
    keyed.emplace_back(std::move(by), std::move(item));
  }
  // Checked before, for std::stable_sort wants an order that does not throw half way.
  for (size_t i = 1; i < keyed.size(); ++i) compare(keyed[i - 1].first, keyed[i].first, "<");
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    renderer.step();
    return reverse ? compare(b.first, a.first, "<") : compare(a.first, b.first, "<");
  });
  for (size_t i = 0; i < items.size(); ++i) items[i] = std::move(keyed[i].second);
}

Value dictsort(Renderer& renderer, const Value& value, Given given) {
  if (!value.is_dict()) {
    value.require_defined();
    fail(fmt::format("'{}' object has no attribute 'items'", value.type_name()));
  }
  const bool case_sensitive = flag_argument(given, 0, "case_sensitive", false);
  const std::string by = text_argument(given, 1, "by", "key");
  if (by != "key" && by != "value") fail("You can only sort by either \"key\" or \"value\"");
  Items items;
  for (const auto& [key, item] : value.dict().pairs) items.push_back(Value::list({key, item}, true));
  sort_by(renderer, items, flag_argument(given, 2, "reverse", false), [&](const Value& pair) {
    return sort_key(pair.list().items[by == "key" ? 0 : 1], case_sensitive);
  });
  return Value::list(std::move(items));
}

Value sort(Renderer& renderer, const Value& value, Given given) {
  Items items = renderer.items(value);
  const Value* attribute = given.find(2, "attribute");
  const bool case_sensitive = flag_argument(given, 1, "case_sensitive", false);
  sort_by(renderer, items, flag_argument(given, 0, "reverse", false), [&](const Value& item) {
    return sort_key(attribute && !attribute->is_none() ? nested(renderer, item, *attribute) : item,
                    case_sensitive);
  });
  return Value::list(std::move(items));
}

template <bool kMax>
Value extreme(Renderer& renderer, const Value& value, Given given) {
  const Items items = renderer.items(value);
  if (items.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  const bool case_sensitive = flag_argument(given, 0, "case_sensitive", false);
  const Value* attribute = given.find(1, "attribute");
  const auto key = [&](const Value& item) {
    return sort_key(attribute ? nested(renderer, item, *attribute) : item, case_sensitive);
  };
  const Value* best = &items[0];
  for (const Value& item : items) {
    if (compare(key(item), key(*best), kMax ? ">" : "<")) best = &item;
  }
  return *best;
}

Value unique(Renderer& renderer, const Value& value, Given given) {
  const bool case_sensitive = flag_argument(given, 0, "case_sensitive", false);
  const Value* attribute = given.find(1, "attribute");
  Items kept, seen;
  for (const Value& item : renderer.items(value)) {
    Value key = sort_key(attribute ? nested(renderer, item, *attribute) : item, case_sensitive);
    renderer.step(static_cast<int64_t>(seen.size() / 8) + 1);
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) continue;
    seen.push_back(std::move(key));
    kept.push_back(item);
  }
  return Value::list(std::move(kept));
}

Value map(Renderer& renderer, const Value& value, Given given) {
  Items out;
  const Value* attribute = given.positional.empty() ? given.find(0, "attribute") : nullptr;
  if (attribute) {
    const Value* fallback = given.find(SIZE_MAX, "default");
    for (const Value& item : renderer.items(value)) {
      renderer.step();
      Value found = nested(renderer, item, *attribute);
      if (found.is_undefined() && fallback) found = *fallback;
      out.push_back(std::move(found));
    }
    return Value::list(std::move(out));
  }
  if (given.positional.empty()) fail("map requires a filter argument");
  Arguments rest{{given.positional.begin() + 1, given.positional.end()}, given.named};
  const std::string name = given.positional[0].str();
  for (const Value& item : renderer.items(value)) out.push_back(renderer.filter(name, item, rest));
  return Value::list(std::move(out));
}

// select, reject, selectattr and rejectattr.
template <bool kKeep, bool kAttribute>
Value select(Renderer& renderer, const Value& value, Given given) {
  constexpr size_t kFirst = kAttribute ? 1 : 0;
  if (kAttribute && given.positional.empty()) fail("Missing parameter for attribute name");
  Items out;
  Arguments rest;
  const bool has_test = given.positional.size() > kFirst;
  if (has_test) rest.positional.assign(given.positional.begin() + kFirst + 1, given.positional.end());
  for (const Value& item : renderer.items(value)) {
    renderer.step();
    const Value subject = kAttribute ? nested(renderer, item, given.positional[0]) : item;
    const bool holds =
        has_test ? renderer.test(given.positional[kFirst].str(), subject, rest) : subject.truthy();
    if (holds == kKeep) out.push_back(item);
  }
  return Value::list(std::move(out));
}

Value join(Renderer& renderer, const Value& value, Given given) {
  const std::string separator = text_argument(given, 0, "d", "");
  const Value* attribute = given.find(1, "attribute");
  std::string text;
  bool first = true;
  for (const Value& item : renderer.items(value)) {
    if (!first) text += separator;
    first = false;
    renderer.charge(separator.size());
    text += renderer.str(attribute && !attribute->is_none() ? nested(renderer, item, *attribute) : item);
  }
  return text;
}

Value sum(Renderer& renderer, const Value& value, Given given) {
  const Value* attribute = given.find(0, "attribute");
  const Value* start = given.find(1, "start");
  Value total = start ? *start : Value(0);
  for (const Value& item : renderer.items(value)) {
    total =
        renderer.add(total, attribute && !attribute->is_none() ? nested(renderer, item, *attribute) : item);
  }
  return total;
}

Value reverse(Renderer& renderer, const Value& value, Given) {
  if (value.is_string()) {
    std::u32string text = to_code_points(value.text());
    std::reverse(text.begin(), text.end());
    std::string reversed = from_code_points(text);
    renderer.charge(reversed.size());
    return reversed;
  }
  Items items = renderer.items(value);
  std::reverse(items.begin(), items.end());
  return Value::list(std::move(items));
}

Value pairs_of(Renderer&, const Value& value, Given) {
  if (value.is_undefined()) return Value::list({});
  if (!value.is_dict()) fail("Can only get item pairs from a mapping.");
  Items items;
  for (const auto& [key, item] : value.dict().pairs) items.push_back(Value::list({key, item}, true));
  return Value::list(std::move(items));
}

}  // namespace

const Filters& item_filters() {
  static const Filters table = {
      {"dictsort", dictsort},
      {"first",
       [](Renderer& r, const Value& v, Given) -> Value {
         const Items items = r.items(v);
         return items.empty() ? Value::undefined("No first item, sequence was empty.") : items.front();
       }},
      {"items", pairs_of},
      {"join", join},
      {"last",
       [](Renderer& r, const Value& v, Given) -> Value {
         const Items items = r.items(v);
         return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
       }},
      {"length",
       [](Renderer& r, const Value& v, Given) -> Value {
         r.step(v.weight() / 8);
         return static_cast<int64_t>(v.length());
       }},
      {"list", [](Renderer& r, const Value& v, Given) { return Value::list(r.items(v)); }},
      {"map", map},
      {"max", extreme<true>},
      {"min", extreme<false>},
      {"reject", select<false, false>},
      {"rejectattr", select<false, true>},
      {"reverse", reverse},
      {"select", select<true, false>},
      {"selectattr", select<true, true>},
      {"sort", sort},
      {"sum", sum},
      {"unique", unique},
  };
  return table;
}

}  // namespace flywheel::model::jinja
