// Bytes nobody foresaw, through everything the runner reads: pictures, masks, models, and answers of a
// network. Each ends in a Failure of one line or in what is promised, which the sanitizers hold it to.
//
//   test_fuzz [SECONDS [SEED]]   (1 s of the same cases by default; make fuzz gives it more)

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "check.h"
#include "failure.h"
#include "files.h"
#include "joint.h"
#include "onnx_model.h"
#include "raster.h"

using namespace blsgan::runner;

namespace {

constexpr int64_t kHeight = 24, kWidth = 20;
constexpr long kGrowthKib = 65536;

struct Chance {
  std::mt19937_64 engine;
  size_t operator()(size_t limit) { return static_cast<size_t>(engine() % limit); }
  bool often() { return engine() % 2 == 0; }
};

Bytes bytes_of(const std::string& content) { return Bytes(content.begin(), content.end()); }

// Flipped bits, odd values, cuts, lost and doubled pieces, the tail of another file.
Bytes damaged(Bytes bytes, const std::vector<Bytes>& others, Chance& chance) {
  const size_t changes = chance.often() ? 1 : 1 + chance(4);
  for (size_t change = 0; change < changes && !bytes.empty(); ++change) {
    const size_t place = chance(bytes.size());
    const size_t at = chance.often() ? place : place % 64;  // headers are where most is decided
    const size_t end = std::min(bytes.size(), at + 1 + chance(32));
    const auto from = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    const auto to = bytes.begin() + static_cast<std::ptrdiff_t>(end);
    switch (chance(7)) {
      case 0:
        bytes[at] ^= static_cast<uint8_t>(1U << chance(8));
        break;
      case 1:
        bytes[at] = static_cast<uint8_t>(chance(256));
        break;
      case 2:
        bytes[at] = std::array<uint8_t, 5>{0, 0xFF, 0x7F, 0x80, '\n'}[chance(5)];
        break;
      case 3:
        bytes.resize(place);
        break;
      case 4:
        bytes.erase(from, to);
        break;
      case 5: {
        const Bytes piece(from, to);
        bytes.insert(to, piece.begin(), piece.end());
        break;
      }
      default: {
        const Bytes& other = others[chance(others.size())];
        const size_t cut = chance(other.size() + 1);
        bytes.resize(at);
        bytes.insert(bytes.end(), other.begin() + static_cast<std::ptrdiff_t>(cut), other.end());
      }
    }
  }
  return bytes;
}

uint32_t crc_of(const Bytes& data, size_t from, size_t to) {
  uint32_t crc = 0xFFFFFFFFU;
  for (size_t i = from; i < to; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0xEDB88320U & (0U - (crc & 1)));
  }
  return ~crc;
}

// A PNG's checksums made right again, so that what lies behind them is read.
void mend_checksums(Bytes& png) {
  size_t at = 8;
  while (at + 12 <= png.size()) {
    size_t size = 0;
    for (size_t i = 0; i < 4; ++i) size = size << 8 | png[at + i];
    if (size > png.size() - at - 12) return;
    const uint32_t crc = crc_of(png, at + 4, at + 8 + size);
    for (size_t i = 0; i < 4; ++i) {
      png[at + 8 + size + i] = static_cast<uint8_t>(crc >> (24 - 8 * i));
    }
    at += size + 12;
  }
}

struct Count {
  long cases = 0, refused = 0;
};

template <typename Body>
void one(Count& count, const Body& body) {
  ++count.cases;
  try {
    body();
  } catch (const Failure& failure) {
    ++count.refused;
    CHECK(failure.status == 1 || failure.status == 2);
    CHECK(std::strchr(failure.what(), '\n') == nullptr);
  }
}

std::vector<Bytes> pictures() {
  std::vector<uint16_t> noise, mask;
  for (int64_t p = 0; p < kHeight * kWidth; ++p) {
    noise.push_back(static_cast<uint16_t>(p * 2749 % 65536));
    mask.push_back(p / kWidth > 4 && p / kWidth < 15 && p % kWidth > 3 && p % kWidth < 16 ? 65535 : 0);
  }
  std::vector<Bytes> found;
  for (const auto& values : {noise, mask}) {
    found.push_back(encode_pgm(values, kHeight, kWidth));
    if (has_png()) found.push_back(encode_png(values, kHeight, kWidth));
  }
  found.push_back(bytes_of("P5 # one\n2\n#two\n 1 7\n\x03\x07"));
  return found;
}

void a_picture(const std::vector<Bytes>& seeds, Chance& chance, Count& count) {
  const Bytes& seed = seeds[chance(seeds.size())];
  File file{"picture", damaged(seed, seeds, chance)};
  if (seed[0] == 0x89 && chance.often()) mend_checksums(file.data);
  one(count, [&] {
    const Radiograph found = decode_radiograph(file, static_cast<int>(chance(17)), chance.often());
    CHECK(found.pixels.size() == static_cast<size_t>(found.height * found.width));
    for (float value : found.pixels) CHECK(value >= 0 && value <= 1);
  });
  one(count, [&] {
    const std::vector<uint8_t> found = decode_mask(file, kHeight, kWidth);
    CHECK(found.size() == static_cast<size_t>(kHeight * kWidth));
    for (uint8_t value : found) CHECK(value <= 1);
  });
}

// A field of protobuf that holds bytes.
Bytes field(uint8_t number, const Bytes& content) {
  Bytes made = {static_cast<uint8_t>(number << 3 | 2)};
  size_t size = content.size();
  for (; size >= 0x80; size >>= 7) made.push_back(static_cast<uint8_t>(size | 0x80));
  made.push_back(static_cast<uint8_t>(size));
  made.insert(made.end(), content.begin(), content.end());
  return made;
}

Bytes joined(Bytes first, const Bytes& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

std::vector<Bytes> models() {
  const Bytes tensor = field(9, Bytes(40, 7));  // raw_data
  const Bytes node = joined(field(1, bytes_of("x")), field(5, field(5, tensor)));
  const Bytes graph = joined(field(1, node), field(5, tensor));
  const Bytes external = field(7, field(5, field(13, bytes_of("location"))));
  return {field(7, graph), joined(field(25, field(7, node)), field(7, graph)), external};
}

void a_model(const std::vector<Bytes>& seeds, Chance& chance, Count& count) {
  const File file{"model.onnx", damaged(seeds[chance(seeds.size())], seeds, chance)};
  one(count, [&] { refuse_external_data(file); });
}

// Pictures of any size with boxes for bones, and a network that may answer anything.
void an_answer(Chance& chance, Count& count) {
  const auto height = static_cast<int64_t>(1 + chance(60)), width = static_cast<int64_t>(1 + chance(60));
  const auto pixels = static_cast<size_t>(height * width);
  std::vector<float> image(pixels);
  for (float& value : image) value = static_cast<float>(chance(256)) / 255.0F;
  std::vector<uint8_t> masks[2];
  for (auto& mask : masks) {
    mask.assign(pixels, 0);
    const auto rows = static_cast<size_t>(height), columns = static_cast<size_t>(width);
    const size_t top = chance(rows), left = chance(columns);
    const size_t bottom = top + 1 + chance(rows - top), right = left + 1 + chance(columns - left);
    for (size_t y = top; y < bottom; ++y) {
      for (size_t x = left; x < right; ++x) mask[y * columns + x] = 1;
    }
  }
  one(count, [&] {
    const Joint joint(height, width, image, masks[0], masks[1]);
    if (!joint.window()) {
      CHECK(joint.without_overlap().upper.size() == pixels);
      return;
    }
    const NetworkInput input = joint.network_input();
    constexpr float kOdd[] = {0, 1, -1, 1e30F, -1e30F, std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN()};
    const bool odd = chance.often();
    Prediction prediction;
    for (size_t p = 0; p < input.masks.size(); ++p) {
      prediction.share_logits.push_back(odd ? kOdd[chance(std::size(kOdd))]
                                            : static_cast<float>(chance(1200)) / 100.0F - 6.0F);
    }
    prediction.physics = Physics{8, chance.often() ? 6.0 : 0.0, static_cast<int64_t>(chance(6))};
    for (size_t p = 0; p < input.image.size(); ++p) {
      prediction.soft_tissue.push_back(odd ? kOdd[chance(std::size(kOdd))]
                                           : static_cast<float>(chance(95)) / 100.0F);
    }
    const Layers layers = joint.split(prediction, input);
    CHECK(layers.upper.size() == pixels && layers.residual.size() == pixels);
    for (size_t p = 0; p < pixels && !odd; ++p) CHECK(layers.upper[p] >= 0 && layers.upper[p] <= 1);
  });
}

long peak_kib() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

}  // namespace

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::strtod(arguments[1], nullptr) : 1.0;
  const unsigned long long seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 7;
  Chance chance{std::mt19937_64(seed)};
  const std::vector<Bytes> picture_seeds = pictures(), model_seeds = models();
  Count picture, model, answer;
  const auto start = std::chrono::steady_clock::now();
  const auto spent = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  long settled = 0;
  for (long trial = 0; failures == 0 && (trial < 500 || spent() < seconds); ++trial) {
    a_picture(picture_seeds, chance, picture);
    a_model(model_seeds, chance, model);
    if (trial % 4 == 0) an_answer(chance, answer);
    if (trial == 400) settled = peak_kib();
  }
  // A picture may be large; what grows with their number would be a leak.
  CHECK(peak_kib() - settled < kGrowthKib + 16 * kMaxPixels / 1024);
  for (const auto& [name, found] :
       {std::pair<const char*, const Count&>{"pictures", picture}, {"models", model},
        {"answers", answer}}) {
    std::printf("%s: %ld cases, %ld refused\n", name, found.cases, found.refused);
    CHECK(found.refused > 0 && found.refused < found.cases);
  }
  std::printf("seed %llu\n", seed);
  return report("fuzz");
}
