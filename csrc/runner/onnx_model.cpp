#include "onnx_model.h"

#include <cstdlib>
#include <optional>

#include "failure.h"

namespace blsgan::runner {
namespace {

enum class Message { kModel, kTraining, kFunction, kGraph, kNode, kAttribute, kSparse, kTensor };

// The way to every tensor, by the numbers of onnx.proto: what a field of a message holds.
std::optional<Message> inner(Message message, uint64_t field) {
  switch (message) {
    case Message::kModel:
      if (field == 7) return Message::kGraph;
      if (field == 20) return Message::kTraining;
      if (field == 25) return Message::kFunction;
      break;
    case Message::kTraining:
      if (field == 1 || field == 2) return Message::kGraph;
      break;
    case Message::kFunction:
      if (field == 7) return Message::kNode;
      if (field == 11) return Message::kAttribute;
      break;
    case Message::kGraph:
      if (field == 1) return Message::kNode;
      if (field == 5) return Message::kTensor;
      if (field == 15) return Message::kSparse;
      break;
    case Message::kNode:
      if (field == 5) return Message::kAttribute;
      break;
    case Message::kAttribute:
      if (field == 5 || field == 10) return Message::kTensor;
      if (field == 6 || field == 11) return Message::kGraph;
      if (field == 22 || field == 23) return Message::kSparse;
      break;
    case Message::kSparse:
      if (field == 1 || field == 2) return Message::kTensor;
      break;
    case Message::kTensor:
      break;
  }
  return std::nullopt;
}

struct Span {
  Message message;
  size_t begin, end;
};

// Reads numbers and steps over fields; nothing where the bytes are no message of protobuf.
std::optional<uint64_t> varint(const Bytes& data, size_t& at, size_t end) {
  uint64_t value = 0;
  for (unsigned shift = 0; shift < 70 && at < end; shift += 7) {
    const uint8_t byte = data[at++];
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

// One field of a message: its number, wire type, and the bytes that it holds (or its value).
struct Field {
  uint64_t number = 0, wire = 0;
  size_t begin = 0, end = 0;
};

// The next field of data[at, end), or nothing.
std::optional<Field> next_field(const Bytes& data, size_t& at, size_t end) {
  const auto tag = varint(data, at, end);
  if (!tag) return std::nullopt;
  Field field{*tag >> 3, *tag & 7, at, at};
  uint64_t size = field.wire == 1 ? 8 : field.wire == 5 ? 4 : 0;
  if (field.wire == 0 || field.wire == 2) {
    const auto number = varint(data, at, end);
    if (!number) return std::nullopt;
    if (field.wire == 2) size = *number;
  }
  if (size > end - at) return std::nullopt;
  field.begin = at;
  at += static_cast<size_t>(size);
  field.end = at;
  return field;
}

enum class Verdict { kWhole, kExternal, kNoModel };

Verdict look(const Bytes& data) {
  constexpr uint64_t kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;
  constexpr uint64_t kExternalData = 13, kDataLocation = 14;
  bool graph = false;
  std::vector<Span> waiting = {{Message::kModel, 0, data.size()}};
  while (!waiting.empty()) {
    const Span span = waiting.back();
    waiting.pop_back();
    for (size_t at = span.begin; at < span.end;) {
      const auto tag = varint(data, at, span.end);
      if (!tag || *tag >> 3 == 0 || *tag >> 32 != 0) return Verdict::kNoModel;
      const uint64_t field = *tag >> 3, wire = *tag & 7;
      uint64_t value = 0, size = wire == kFixed64 ? 8 : wire == kFixed32 ? 4 : 0;
      if (wire == kVarint || wire == kBytes) {
        const auto number = varint(data, at, span.end);
        if (!number) return Verdict::kNoModel;
        (wire == kBytes ? size : value) = *number;
      } else if (wire != kFixed64 && wire != kFixed32) {
        return Verdict::kNoModel;
      }
      if (size > span.end - at) return Verdict::kNoModel;
      if (span.message == Message::kTensor && (field == kExternalData || field == kDataLocation)) {
        // The location 0 is the model itself.
        if (field == kExternalData || wire != kVarint || (value & 0xFFFFFFFF) != 0) {
          return Verdict::kExternal;
        }
      } else if (const auto message = inner(span.message, field); message && wire == kBytes) {
        waiting.push_back({*message, at, at + static_cast<size_t>(size)});
        graph = graph || *message == Message::kGraph;
      }
      at += static_cast<size_t>(size);
    }
  }
  return graph ? Verdict::kWhole : Verdict::kNoModel;
}

}  // namespace

void refuse_external_data(const File& model) {
  switch (look(model.data)) {
    case Verdict::kWhole:
      return;
    case Verdict::kExternal:
      throw data_failure(model.path +
                         " keeps tensors in other files, which its hash does not cover and which could "
                         "be any file; save it with its weights inside.");
    case Verdict::kNoModel:
      throw data_failure(model.path +
                         " is not a network that can be run (it is no ONNX model, or a damaged one); "
                         "give another one.");
  }
}

Physics physics_of(const File& model) {
  constexpr uint64_t kMetadata = 14, kKey = 1, kValue = 2, kBytes = 2;
  const std::string prefix = "blsgan.";
  const auto words = [&](const Field& field) {
    return std::string(model.data.begin() + static_cast<std::ptrdiff_t>(field.begin),
                       model.data.begin() + static_cast<std::ptrdiff_t>(field.end));
  };
  std::map<std::string, std::string> described;
  for (size_t at = 0; at < model.data.size();) {
    const auto entry = next_field(model.data, at, model.data.size());
    if (!entry) break;
    if (entry->number != kMetadata || entry->wire != kBytes) continue;
    std::string key, value;
    for (size_t part = entry->begin; part < entry->end;) {
      const auto field = next_field(model.data, part, entry->end);
      if (!field) break;
      if (field->number == kKey) key = words(*field);
      if (field->number == kValue) value = words(*field);
    }
    if (key.rfind(prefix, 0) == 0) described[key.substr(prefix.size())] = value;
  }
  return physics_of(described, model.path);
}

// The number that `said` begins with and how many of its characters it takes, 0 where there is none.
static double strict_number(const std::string& said, size_t& read) {
  char* end = nullptr;
  const double value = std::strtod(said.c_str(), &end);
  read = end == nullptr ? 0 : static_cast<size_t>(end - said.c_str());
  return value;
}

Physics physics_of(const std::map<std::string, std::string>& described, const std::string& path) {
  constexpr double kLeastLaw = 1, kGreatestLaw = 20;
  const auto number = [&](const char* name) {
    const auto found = described.find(name);
    const std::string said = found == described.end() ? "" : found->second;
    size_t read = 0;
    const double value = said.empty() ? 0 : strict_number(said, read);
    if (said.empty() || read != said.size()) {
      throw data_failure(path +
                         " was written by an earlier blsgan, whose shares meant something else; "
                         "export it again from its weights, or use the shipped ones.");
    }
    return value;
  };
  const double multiple = number("size_multiple"), law = number("law"), reach = number("reach_px");
  const bool usable = multiple == static_cast<double>(kSizeMultiple) && reach >= 0 && reach <= 16 &&
                      (law == 0 || (law >= kLeastLaw && law <= kGreatestLaw));
  if (!usable) {
    throw data_failure(text("%s says size_multiple %g, law %g, reach_px %g: not what blsgan-infer can "
                            "use; give other weights.",
                            path.c_str(), multiple, law, reach));
  }
  return {static_cast<int64_t>(multiple), law, static_cast<int64_t>(reach)};
}

}  // namespace blsgan::runner
