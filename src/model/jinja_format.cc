#include "model/jinja_format.h"

#include <algorithm>
#include <charconv>

#include "model/unicode.h"

namespace flywheel::model::jinja {
namespace {

constexpr size_t kWidest = 100'000;  // of a formatted field

std::string with_commas(std::string digits, char separator) {
  size_t end = std::min(digits.find('.'), digits.size());
  const size_t first = digits.starts_with('-') ? 1 : 0;
  while (end > first + 3) digits.insert(end -= 3, 1, separator);
  return digits;
}

// [[fill]align][sign][#][0][width][grouping][.precision][type]
struct Spec {
  std::string fill = " ";
  char align = '\0', sign = '-', type = '\0', grouping = '\0';
  size_t width = 0;
  int precision = -1;
};

Spec parse_spec(std::string_view text) {
  Spec spec;
  size_t at = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  const size_t first = text.empty() ? 0 : decode_utf8(text, 0).size_bytes;
  if (first > 0 && first < text.size() && is_align(text[first])) {
    spec.fill = text.substr(0, first);
    spec.align = text[first];
    at = first + 1;
  } else if (!text.empty() && is_align(text[0])) {
    spec.align = text[at++];
  }
  if (at < text.size() && (text[at] == '+' || text[at] == '-' || text[at] == ' ')) spec.sign = text[at++];
  if (at < text.size() && text[at] == '#') ++at;
  if (at < text.size() && text[at] == '0') {
    if (spec.align == '\0') spec.align = '=', spec.fill = "0";
    ++at;
  }
  const auto number = [&](auto& value) {
    const auto parsed = std::from_chars(text.data() + at, text.data() + text.size(), value);
    if (parsed.ec == std::errc()) at = static_cast<size_t>(parsed.ptr - text.data());
    if (parsed.ec == std::errc::result_out_of_range ||
        static_cast<int64_t>(value) > static_cast<int64_t>(kWidest)) {
      fail("Too many decimal digits in format string");
    }
  };
  number(spec.width);
  if (at < text.size() && (text[at] == ',' || text[at] == '_')) spec.grouping = text[at++];
  if (at < text.size() && text[at] == '.') {
    ++at;
    number(spec.precision);
    if (spec.precision > 1000) fail("precision too big");
  }
  if (at < text.size()) spec.type = text[at++];
  if (at < text.size()) fail("Invalid format specifier");
  return spec;
}

}  // namespace

std::string format_value(const Value& value, std::string_view spec_text) {
  if (spec_text.empty()) return value.str();
  const Spec spec = parse_spec(spec_text);
  std::string text;
  bool numeric = value.is_number() && !(value.is_bool() && spec.type == '\0');
  if (numeric) {
    const bool real = value.is_float() || spec.type == 'f' || spec.type == 'F' || spec.type == 'e' ||
                      spec.type == 'g' || spec.type == '%';
    if (real) {
      const int precision = spec.precision < 0 ? 6 : spec.precision;
      const double x = value.number();
      switch (spec.type) {
        case 'f':
        case 'F':
          text = fmt::format("{:.{}f}", x, precision);
          break;
        case 'e':
          text = fmt::format("{:.{}e}", x, precision);
          break;
        case 'g':
          text = fmt::format("{:.{}g}", x, precision);
          break;
        case '%':
          text = fmt::format("{:.{}f}%", x * 100, precision);
          break;
        case '\0':
          text = spec.precision < 0 ? float_repr(x) : fmt::format("{:.{}g}", x, precision);
          break;
        default:
          fail(fmt::format("Unknown format code '{}' for object of type 'float'", spec.type));
      }
    } else {
      const int64_t n = value.integer();
      switch (spec.type) {
        case 'd':
        case '\0':
          text = std::to_string(n);
          break;
        case 'x':
          text = fmt::format("{:x}", n);
          break;
        case 'X':
          text = fmt::format("{:X}", n);
          break;
        case 'o':
          text = fmt::format("{:o}", n);
          break;
        case 'b':
          text = fmt::format("{:b}", n);
          break;
        default:
          fail(fmt::format("Unknown format code '{}' for object of type 'int'", spec.type));
      }
    }
    if (spec.grouping) text = with_commas(std::move(text), spec.grouping);
    if (spec.sign != '-' && !text.starts_with('-')) text.insert(0, 1, spec.sign);
  } else {
    if (spec.type != '\0' && spec.type != 's') {
      fail(fmt::format("Unknown format code '{}' for object of type '{}'", spec.type, value.type_name()));
    }
    if (!value.is_string() && !value.is_bool()) {
      fail(fmt::format("unsupported format string passed to {}.__format__", value.type_name()));
    }
    text = value.str();
    if (spec.precision >= 0)
      text = from_code_points(to_code_points(text).substr(0, static_cast<size_t>(spec.precision)));
  }
  const size_t length = count_code_points(text);
  if (length >= spec.width) return text;
  const size_t missing = spec.width - length;
  const char align = spec.align ? spec.align : numeric ? '>' : '<';
  size_t before = align == '>' || align == '=' ? missing : align == '^' ? missing / 2 : 0;
  std::string left, right;
  for (size_t i = 0; i < missing; ++i) (i < before ? left : right) += spec.fill;
  if (align == '=' && (text.starts_with('-') || text.starts_with('+')))
    return text.substr(0, 1) + left + text.substr(1);
  return left + text + right;
}

std::string brace_format(Renderer& renderer, const std::string& format, const Arguments& given) {
  std::string out;
  size_t automatic = 0;
  for (size_t at = 0; at < format.size();) {
    const char c = format[at];
    if ((c == '{' || c == '}') && at + 1 < format.size() && format[at + 1] == c) {
      out += c;
      at += 2;
      continue;
    }
    if (c == '}') fail("Single '}' encountered in format string");
    if (c != '{') {
      out += c;
      ++at;
      continue;
    }
    const size_t end = format.find('}', at);
    if (end == std::string::npos) fail("expected '}' before end of string");
    std::string field = format.substr(at + 1, end - at - 1), spec;
    at = end + 1;
    if (const size_t colon = field.find(':'); colon != std::string::npos) {
      spec = field.substr(colon + 1);
      field.resize(colon);
    }
    char conversion = '\0';
    if (const size_t mark = field.find('!'); mark != std::string::npos && mark + 1 < field.size()) {
      conversion = field[mark + 1];
      field.resize(mark);
    }
    const size_t name_end = std::min(field.find_first_of(".["), field.size());
    const std::string name = field.substr(0, name_end);
    size_t index = 0;
    const bool number = !name.empty() && std::from_chars(name.data(), name.data() + name.size(), index).ptr ==
                                             name.data() + name.size();
    const Value* value = nullptr;
    if (name.empty() || number) {
      index = name.empty() ? automatic++ : index;
      if (index >= given.positional.size())
        fail(fmt::format("Replacement index {} out of range for positional args tuple", index));
      value = &given.positional[index];
    } else {
      value = given.find(SIZE_MAX, name);
      if (!value) fail(Value(name).repr());
    }
    Value result = *value;
    for (size_t i = name_end; i < field.size();) {
      const bool item = field[i] == '[';
      const size_t stop = item ? field.find(']', i) : field.find_first_of(".[", i + 1);
      const std::string part = field.substr(i + 1, stop == std::string::npos ? stop : stop - i - 1);
      result = item ? renderer.item(result, part) : renderer.attribute(result, part);
      i = stop == std::string::npos ? field.size() : stop + (item ? 1 : 0);
    }
    if (conversion == 'r') result = result.repr();
    if (conversion == 's') result = result.str();
    std::string text = format_value(result, spec);
    renderer.charge(text.size());
    out += text;
  }
  return out;
}

std::string percent_format(Renderer& renderer, const std::string& format, const Value& arguments) {
  const bool is_tuple = arguments.is_list() && arguments.list().tuple;
  const Items values = is_tuple ? arguments.list().items : Items{arguments};
  std::string out;
  size_t used = 0;
  bool by_name = false;
  for (size_t at = 0; at < format.size(); ++at) {
    if (format[at] != '%') {
      out += format[at];
      continue;
    }
    if (++at >= format.size()) fail("incomplete format");
    if (format[at] == '%') {
      out += '%';
      continue;
    }
    Value value;
    if (format[at] == '(') {
      const size_t end = format.find(')', at);
      if (end == std::string::npos) fail("incomplete format key");
      if (!arguments.is_dict()) fail("format requires a mapping");
      value = renderer.item(arguments, format.substr(at + 1, end - at - 1));
      by_name = true;
      at = end + 1;
    }
    std::string flags;
    while (at < format.size() && std::string_view("-+ 0#").find(format[at]) != std::string_view::npos)
      flags += format[at++];
    const size_t width_begin = at;
    while (at < format.size() && ((format[at] >= '0' && format[at] <= '9') || format[at] == '.')) ++at;
    std::string spec = format.substr(width_begin, at - width_begin);
    if (at >= format.size()) fail("incomplete format");
    const char type = format[at];
    if (!by_name) {
      if (used >= values.size()) fail("not enough arguments for format string");
      value = values[used++];
    }
    const bool text_type = type == 's' || type == 'r';
    if (text_type) {
      value = type == 's' ? value.str() : value.repr();
      spec = (flags.find('-') == std::string::npos ? ">" : "<") + spec;
    } else {
      if (type != 'd' && type != 'i' && type != 'f' && type != 'x' && type != 'X' && type != 'o' &&
          type != 'e' && type != 'g') {
        fail(fmt::format("unsupported format character '{}' ({:#x}) at index {}", type,
                         static_cast<int>(type), at));
      }
      if (!value.is_number())
        fail(fmt::format("%{} format: a real number is required, not {}", type, value.type_name()));
      if ((type == 'd' || type == 'i') && value.is_float())
        value = static_cast<int64_t>(std::clamp(value.number(), -9e18, 9e18));
      std::string prefix;
      if (flags.find('-') != std::string::npos) prefix = "<";
      if (flags.find('+') != std::string::npos) prefix += "+";
      if (flags.find('0') != std::string::npos) prefix += "0";
      spec = prefix + spec + (type == 'i' ? 'd' : type);
    }
    std::string text = format_value(value, spec);
    renderer.charge(text.size());
    out += text;
  }
  if (is_tuple && !by_name && used < values.size())
    fail("not all arguments converted during string formatting");
  if (!is_tuple && !by_name && used == 0 && !arguments.is_dict() && !arguments.is_list()) {
    fail("not all arguments converted during string formatting");
  }
  return out;
}

}  // namespace flywheel::model::jinja
