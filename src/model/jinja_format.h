// Python's ways to format a text. They fail() as Python does, with its words.
#pragma once

#include "model/jinja_render.h"

namespace flywheel::model::jinja {

// format(value, spec)
std::string format_value(const Value& value, std::string_view spec);
// "{0} {name.attribute[item]!r:>8}".format(...)
std::string brace_format(Renderer& renderer, const std::string& format, const Arguments& given);
// "%d %(name)s" % arguments
std::string percent_format(Renderer& renderer, const std::string& format, const Value& arguments);

}  // namespace flywheel::model::jinja
