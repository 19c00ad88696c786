#include "runtime/shape.h"

#include <algorithm>
#include <set>

#include "base/text.h"

namespace flywheel::runtime {

Result<void> Shape::check() const {
  std::set<std::string> names;
  int64_t total = 1;
  for (const auto& axis : axes_) {
    if (axis.name.empty()) return make_error(ErrorCode::kInvalid, "an axis of the mesh has no name");
    if (axis.name.find(',') != std::string::npos) {
      return make_error(ErrorCode::kInvalid, "axis {}: a comma joins axes, it cannot be in a name",
                        axis.name);
    }
    if (axis.size < 1) {
      return make_error(ErrorCode::kInvalid, "axis {} has size {}; it must be 1 or more", axis.name,
                        axis.size);
    }
    if (!names.insert(axis.name).second)
      return make_error(ErrorCode::kInvalid, "axis {} is there twice", axis.name);
    total *= axis.size;
    if (total > 1 << 20) return make_error(ErrorCode::kInvalid, "a mesh of more than {} workers", 1 << 20);
  }
  return {};
}

int Shape::size() const {
  int size = 1;
  for (const auto& axis : axes_) size *= axis.size;
  return size;
}

int Shape::stride(size_t axis) const {
  int stride = 1;
  for (size_t i = axis + 1; i < axes_.size(); ++i) stride *= axes_[i].size;
  return stride;
}

Result<size_t> Shape::find(const std::string& axis) const {
  for (size_t i = 0; i < axes_.size(); ++i) {
    if (axes_[i].name == axis) return i;
  }
  return make_error(ErrorCode::kInvalid, "the mesh ({}) has no axis {}", to_string(), axis);
}

Result<int> Shape::axis_size(const std::string& axis) const {
  ASSIGN_OR_RETURN(const size_t i, find(axis));
  return axes_[i].size;
}

Result<int> Shape::coordinate(int rank, const std::string& axis) const {
  ASSIGN_OR_RETURN(const size_t i, find(axis));
  return rank / stride(i) % axes_[i].size;
}

Result<std::vector<size_t>> Shape::find_all(const std::string& axes) const {
  std::vector<size_t> found;
  for (const std::string& axis : split(axes, ',')) {
    ASSIGN_OR_RETURN(const size_t i, find(axis));
    found.push_back(i);
  }
  std::sort(found.begin(), found.end());
  if (std::adjacent_find(found.begin(), found.end()) != found.end())
    return make_error(ErrorCode::kInvalid, "{} names an axis twice", axes);
  return found;
}

Result<std::string> Shape::product(const std::string& axes) const {
  if (axes.empty()) return std::string();
  ASSIGN_OR_RETURN(const std::vector<size_t> found, find_all(axes));
  std::string name;
  for (const size_t i : found) name += (name.empty() ? "" : ",") + axes_[i].name;
  return name;
}

Result<std::vector<int>> Shape::group(int rank, const std::string& axes) const {
  if (axes.empty()) return slice({});
  ASSIGN_OR_RETURN(const std::vector<size_t> found, find_all(axes));
  int first = rank;
  for (const size_t i : found) first -= rank / stride(i) % axes_[i].size * stride(i);
  std::vector<int> ranks{first};
  for (const size_t i : found) {  // the last axis varies fastest
    std::vector<int> wider;
    for (const int from : ranks) {
      for (int c = 0; c < axes_[i].size; ++c) wider.push_back(from + c * stride(i));
    }
    ranks = std::move(wider);
  }
  return ranks;
}

Result<std::vector<int>> Shape::slice(const std::map<std::string, int>& at) const {
  for (const auto& [name, coordinate] : at) {
    ASSIGN_OR_RETURN(const size_t i, find(name));
    if (coordinate < 0 || coordinate >= axes_[i].size) {
      return make_error(ErrorCode::kInvalid, "{}={} is outside the mesh ({})", name, coordinate, to_string());
    }
  }
  std::vector<int> ranks;
  for (int rank = 0; rank < size(); ++rank) {
    bool inside = true;
    for (size_t i = 0; i < axes_.size(); ++i) {
      const auto wanted = at.find(axes_[i].name);
      inside = inside && (wanted == at.end() || rank / stride(i) % axes_[i].size == wanted->second);
    }
    if (inside) ranks.push_back(rank);
  }
  return ranks;
}

std::string Shape::to_string() const {
  std::string text;
  for (const auto& axis : axes_)
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", axis.name, axis.size);
  return text.empty() ? "one worker" : text;
}

std::string ranks_text(const std::vector<int>& ranks, const std::string& word) {
  std::string text;
  for (size_t i = 0; i < ranks.size();) {
    size_t end = i;
    while (end + 1 < ranks.size() && ranks[end + 1] == int64_t{ranks[end]} + 1) ++end;
    text += (text.empty() ? "" : ",") + std::to_string(ranks[i]);
    if (end > i) text += "-" + std::to_string(ranks[end]);
    i = end + 1;
  }
  return word.empty() ? text : fmt::format("{}{} {}", word, ranks.size() == 1 ? "" : "s", text);
}

}  // namespace flywheel::runtime
