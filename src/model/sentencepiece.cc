// Tokenizers from SentencePiece models: the fields that matter of a protobuf ModelProto
// (sentencepiece_model.proto).
#include <cstring>
#include <functional>

#include "model/bpe.h"
#include "model/tokenizer_internal.h"
#include "model/tokenizer_scores.h"
#include "model/unigram.h"

namespace flywheel::model {
namespace {

const std::string kMark = "\xE2\x96\x81";

// Protobuf's wire format: fields one after another, each a tag (number and kind) and a value.
class WireReader {
 public:
  struct Field {
    uint64_t number = 0;
    uint64_t varint = 0;     // kinds 0, 1 and 5
    std::string_view bytes;  // kind 2
    float as_float() const {
      float value;
      const auto bits = static_cast<uint32_t>(varint);
      std::memcpy(&value, &bits, 4);
      return value;
    }
  };
  explicit WireReader(std::string_view bytes) : bytes_(bytes) {}
  bool at_end() const { return bytes_.empty(); }

  Result<Field> next() {
    ASSIGN_OR_RETURN(const uint64_t tag, varint());
    Field field{tag >> 3, 0, {}};
    switch (tag & 7) {
      case 0: {
        ASSIGN_OR_RETURN(field.varint, varint());
        return field;
      }
      case 1:
        return fixed(field, 8);
      case 5:
        return fixed(field, 4);
      case 2: {
        ASSIGN_OR_RETURN(const uint64_t size, varint());
        if (size > bytes_.size()) return torn();
        field.bytes = bytes_.substr(0, size);
        bytes_.remove_prefix(size);
        return field;
      }
      default:
        return make_error(ErrorCode::kCorrupt, "SentencePiece model: field {} has wire type {}", tag >> 3,
                          tag & 7);
    }
  }

 private:
  static Error torn() {
    return make_error(ErrorCode::kCorrupt, "SentencePiece model: the file ends inside a field");
  }
  Result<Field> fixed(Field field, size_t size) {
    if (bytes_.size() < size) return torn();
    std::memcpy(&field.varint, bytes_.data(), size);
    bytes_.remove_prefix(size);
    return field;
  }
  Result<uint64_t> varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (bytes_.empty()) return torn();
      const auto byte = static_cast<unsigned char>(bytes_.front());
      bytes_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    return make_error(ErrorCode::kCorrupt, "SentencePiece model: a number of more than 64 bits");
  }
  std::string_view bytes_;
};

using FieldVisitor = std::function<Result<void>(const WireReader::Field&)>;
Result<void> for_each_field(std::string_view bytes, const FieldVisitor& visit) {
  WireReader reader(bytes);
  while (!reader.at_end()) {
    ASSIGN_OR_RETURN(const WireReader::Field field, reader.next());
    RETURN_IF_ERROR(visit(field));
  }
  return {};
}

enum PieceType : uint64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};
enum ModelType : uint64_t { kUnigramModel = 1, kBpeModel = 2 };

struct Proto {
  std::vector<std::string> pieces;
  std::vector<double> scores;
  std::vector<uint64_t> types;
  uint64_t model_type = kUnigramModel;
  bool byte_fallback = false;
  int64_t unknown = 0, bos = 1, eos = 2, pad = -1;
  std::string charsmap;
  bool dummy_prefix = true, squeeze_spaces = true, escape_spaces = true;
};

Result<void> read_piece(std::string_view bytes, Proto& proto) {
  proto.pieces.emplace_back();
  proto.scores.push_back(0);
  proto.types.push_back(kNormal);
  return for_each_field(bytes, [&](const WireReader::Field& field) -> Result<void> {
    if (field.number == 1) proto.pieces.back() = field.bytes;
    if (field.number == 2) proto.scores.back() = field.as_float();
    if (field.number == 3) proto.types.back() = field.varint;
    return {};
  });
}

Result<void> read_trainer(std::string_view bytes, Proto& proto) {
  return for_each_field(bytes, [&](const WireReader::Field& field) -> Result<void> {
    const auto id = static_cast<int64_t>(static_cast<int32_t>(field.varint));
    if (field.number == 3) proto.model_type = field.varint;
    if (field.number == 35) proto.byte_fallback = field.varint != 0;
    if (field.number == 40) proto.unknown = id;
    if (field.number == 41) proto.bos = id;
    if (field.number == 42) proto.eos = id;
    if (field.number == 43) proto.pad = id;
    return {};
  });
}

Result<void> read_normalizer(std::string_view bytes, Proto& proto) {
  return for_each_field(bytes, [&](const WireReader::Field& field) -> Result<void> {
    if (field.number == 2) proto.charsmap = field.bytes;
    if (field.number == 3) proto.dummy_prefix = field.varint != 0;
    if (field.number == 4) proto.squeeze_spaces = field.varint != 0;
    if (field.number == 5) proto.escape_spaces = field.varint != 0;
    return {};
  });
}

Result<Proto> read_proto(std::string_view model) {
  Proto proto;
  RETURN_IF_ERROR(for_each_field(model, [&](const WireReader::Field& field) -> Result<void> {
    if (field.number == 1) return read_piece(field.bytes, proto);
    if (field.number == 2) return read_trainer(field.bytes, proto);
    if (field.number == 3) return read_normalizer(field.bytes, proto);
    return {};
  }));
  if (proto.pieces.empty()) return make_error(ErrorCode::kInvalid, "SentencePiece model: it has no pieces");
  return proto;
}

Result<std::unique_ptr<TokenModel>> make_model(const Proto& proto, TokenId unknown) {
  std::vector<std::string> usable = proto.pieces;
  std::vector<bool> mergeable(usable.size());
  for (size_t i = 0; i < usable.size(); ++i) {
    mergeable[i] = proto.types[i] == kNormal;
    if (!mergeable[i] && proto.types[i] != kByte) usable[i].clear();
  }
  Vocabulary vocabulary(usable);
  std::unique_ptr<TokenModel> model;
  if (proto.model_type == kBpeModel) {
    BpeOptions options;
    options.byte_fallback = proto.byte_fallback;
    options.fuse_unknown = true;
    options.unknown = unknown;
    ASSIGN_OR_RETURN(const std::vector<BpeMerge> merges,
                     merges_of_scores(vocabulary, proto.scores, mergeable));
    ASSIGN_OR_RETURN(model, Bpe::create(std::move(vocabulary), merges, options));
  } else if (proto.model_type == kUnigramModel) {
    UnigramOptions options{unknown, proto.byte_fallback, /*single_precision=*/true};
    ASSIGN_OR_RETURN(model, Unigram::create(std::move(vocabulary), proto.scores, mergeable, options));
  } else {
    return make_error(ErrorCode::kInvalid, "SentencePiece model: type {} is neither unigram nor BPE",
                      proto.model_type);
  }
  return model;
}

}  // namespace

Result<Tokenizer> Tokenizer::from_sentencepiece(std::string_view model) {
  ASSIGN_OR_RETURN(const Proto proto, read_proto(model));
  auto parts = std::make_shared<TokenizerParts>();
  const auto id = [&](int64_t value) {
    return value >= 0 && value < static_cast<int64_t>(proto.pieces.size())
               ? std::optional(static_cast<TokenId>(value))
               : std::nullopt;
  };
  parts->unknown = id(proto.unknown);
  parts->bos = id(proto.bos);
  parts->eos = id(proto.eos);
  parts->pad = id(proto.pad);
  ASSIGN_OR_RETURN(parts->model, make_model(proto, parts->unknown.value_or(kNoToken)));

  RETURN_IF_ERROR(parts->normalizer.add_charsmap(proto.charsmap, false));
  if (proto.squeeze_spaces) parts->normalizer.add_squeeze_spaces();
  const std::string space = proto.escape_spaces ? kMark : " ";
  if (proto.dummy_prefix) parts->normalizer.add_prepend(space);
  parts->normalizer.add_replace(" ", space);
  ASSIGN_OR_RETURN(parts->decoder, TokenDecoder::from_json(sentencepiece_decoder(proto.dummy_prefix)));

  parts->tokens = Vocabulary(proto.pieces);
  std::vector<AddedToken> added;
  for (size_t i = 0; i < proto.pieces.size(); ++i) {
    if (proto.types[i] != kControl && proto.types[i] != kUserDefined && proto.types[i] != kUnknown) continue;
    AddedToken token;
    token.id = static_cast<TokenId>(i);
    token.content = proto.pieces[i];
    token.special = proto.types[i] != kUserDefined;
    added.push_back(std::move(token));
  }
  parts->set_added(std::move(added));
  if (parts->bos) parts->before.push_back(*parts->bos);
  parts->find_end_tokens();
  return Tokenizer(std::move(parts));
}

}  // namespace flywheel::model
