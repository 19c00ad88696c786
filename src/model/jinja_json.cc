// Values as JSON text, in the styles of Python's json.dumps.
#include <algorithm>
#include <cmath>

#include "model/jinja_value.h"
#include "model/unicode.h"

namespace flywheel::model::jinja {
namespace {

void write_json_string(std::string& out, std::string_view text, bool ascii) {
  out += '"';
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text, at);
    const auto code = static_cast<uint32_t>(c.value);
    switch (code) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (code < 0x20 || (ascii && code >= 0x7F && code < 0x10000)) {
          out += code == 0x7F ? "\x7F" : fmt::format("\\u{:04x}", code);
        } else if (ascii && code >= 0x10000) {
          const uint32_t rest = code - 0x10000;
          out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF));
        } else {
          append_utf8(out, c.value);
        }
    }
    at += c.size_bytes;
  }
  out += '"';
}

std::string json_float(double value) {
  return std::isnan(value)   ? "NaN"
         : std::isinf(value) ? (value < 0 ? "-Infinity" : "Infinity")
                             : float_repr(value);
}

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}
  void write(const Value& value, int level) {
    if (value.is_none()) {
      out_ += "null";
    } else if (value.is_bool()) {
      out_ += value.integer() ? "true" : "false";
    } else if (value.is_int()) {
      out_ += std::to_string(value.integer());
    } else if (value.is_float()) {
      out_ += json_float(value.number());
    } else if (value.is_string()) {
      write_json_string(out_, value.text(), style_.ascii);
    } else if (value.is_list()) {
      write_list(value.list(), level);
    } else if (value.is_dict()) {
      write_dict(value.dict(), level);
    } else {
      fail(fmt::format("Object of type {} is not JSON serializable", value.type_name()));
    }
  }
  std::string take() { return std::move(out_); }

 private:
  void line(int level) {
    if (!style_.multiline) return;
    out_ += '\n';
    for (int i = 0; i < level; ++i) out_ += style_.indent;
  }
  void write_list(const List& list, int level) {
    out_ += '[';
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      line(level + 1);
      write(list.items[i], level + 1);
    }
    if (!list.items.empty()) line(level);
    out_ += ']';
  }
  void write_dict(const Dict& dict, int level) {
    std::vector<const std::pair<Value, Value>*> pairs;
    for (const auto& pair : dict.pairs) pairs.push_back(&pair);
    if (style_.sort_keys) {
      std::stable_sort(pairs.begin(), pairs.end(),
                       [](const auto* a, const auto* b) { return compare(a->first, b->first, "<"); });
    }
    out_ += '{';
    for (size_t i = 0; i < pairs.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      line(level + 1);
      const Value& key = pairs[i]->first;
      if (key.is_string()) {
        write_json_string(out_, key.text(), style_.ascii);
      } else if (key.is_number() || key.is_none()) {
        out_ += '"';
        write(key, level);
        out_ += '"';
      } else {
        fail(fmt::format("keys must be str, int, float, bool or None, not {}", key.type_name()));
      }
      out_ += style_.key_separator;
      write(pairs[i]->second, level + 1);
    }
    if (!pairs.empty()) line(level);
    out_ += '}';
  }
  const JsonStyle& style_;
  std::string out_;
};

}  // namespace

std::string to_json(const Value& value, const JsonStyle& style) {
  JsonWriter writer(style);
  writer.write(value, 0);
  return writer.take();
}

}  // namespace flywheel::model::jinja
