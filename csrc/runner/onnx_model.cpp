#include "onnx_model.h"

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

}  // namespace blsgan::runner
