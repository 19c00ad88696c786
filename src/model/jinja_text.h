// Python's string operations on UTF-8, for the template language's filters and methods.
#pragma once

#include "model/jinja_render.h"

namespace flywheel::model::jinja {

std::string upper_case(std::string_view text);
std::string lower_case(std::string_view text);
std::string title_text(std::string_view text);
std::string capitalize_text(std::string_view text);
// Without characters that are not letters with a case they are false, as in Python.
bool is_lower_text(std::string_view text);
bool is_upper_text(std::string_view text);
bool is_python_space(char32_t c);

// strip, lstrip, rstrip: of the characters in `set`, or of white space where that is null.
std::string strip_text(std::string_view text, const std::string* set, bool left, bool right);
std::string replace_text(Renderer& renderer, const std::string& text, const std::string& from,
                         const std::string& to, int64_t count);
std::vector<std::string> split_spaces(std::string_view text, int64_t most);
std::vector<std::string> split_at(std::string_view text, std::string_view separator, int64_t most,
                                  bool from_right);

}  // namespace flywheel::model::jinja
