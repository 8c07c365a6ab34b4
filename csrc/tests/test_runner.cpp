// The runner's parts without a network: what it reads, plans, resamples and refuses. Bytes nobody
// foresaw are test_fuzz.cpp's.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "check.h"
#include "failure.h"
#include "files.h"
#include "joint.h"
#include "raster.h"
#include "joint/resample.h"
#include "sha256.h"

using namespace blsgan::runner;

namespace {

File file_of(Bytes bytes) { return {"picture", std::move(bytes)}; }

std::string failure_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::vector<uint16_t> ramp(int64_t height, int64_t width) {
  std::vector<uint16_t> values(static_cast<size_t>(height * width));
  for (size_t p = 0; p < values.size(); ++p) values[p] = static_cast<uint16_t>(p * 2749 % 65536);
  return values;
}

void pictures_come_back() {
  const std::vector<uint16_t> values = ramp(7, 11);
  std::vector<Bytes> encoded = {encode_pgm(values, 7, 11)};
  if (has_png()) encoded.push_back(encode_png(values, 7, 11));
  for (Bytes& bytes : encoded) {
    const Raster raster = decode_raster(file_of(std::move(bytes)));
    CHECK(raster.height == 7 && raster.width == 11);
    CHECK(raster.full == 65535 && raster.container_bits == 16);
    CHECK(raster.values == values);
  }
}

void pgm_headers() {
  const auto text = [](const std::string& content) { return Bytes(content.begin(), content.end()); };
  const Raster raster = decode_raster(file_of(text("P5 # one\n2\n#two\n 1 7\n\x03\x07")));
  CHECK(raster.full == 7 && raster.values == (std::vector<uint16_t>{3, 7}));
  const std::pair<std::string, std::string> bad[] = {
      {"P5 2 1 255\n\x01", "damaged or truncated"},
      {"P5 2 1 255\n\x01\x02\x03", "more than one picture"},
      {"P5 2 1 5\n\x01\x06", "more than the maximum 5"},
      {"P5 0 1 255\n", "has no pixels"},
      {"P5 20001 1 255\n", "megapixels"},
      {"P5 9000 9000 255\n", "megapixels"},
      {"P5 999999999999 1 255\n", "damaged or truncated"},
      {"P5 2 1 65536\n\x01\x02", "damaged or truncated"},
      {"P5 -2 1 255\n\x01\x02", "damaged or truncated"},
      {"P5", "not a readable image"},
      {"P2 2 1 255\n1 2", "not a readable image"}};
  for (const auto& [content, words] : bad) {
    CHECK(contains(failure_of([&] { decode_raster(file_of(text(content))); }), words));
  }
}

void bits_are_guessed() {
  std::vector<uint16_t> values = ramp(8, 8);
  for (uint16_t& value : values) value = static_cast<uint16_t>(value >> 4);
  const File file = file_of(encode_pgm(values, 8, 8));
  const Radiograph guessed = decode_radiograph(file, 0, false);
  CHECK(guessed.notes.size() == 1);
  CHECK_NEAR(guessed.pixels[1], values[1] / 4095.0, 1e-7);
  const Radiograph given = decode_radiograph(file, 16, true);
  CHECK(given.notes.size() == 1);
  CHECK_NEAR(given.pixels[1], 1 - values[1] / 65535.0, 1e-7);
  CHECK(contains(failure_of([&] { decode_radiograph(file, 11, false); }), "more than 11 bits"));
}

std::vector<float> resized(const std::vector<float>& plane, int64_t width, int64_t out_height,
                           int64_t out_width, const blsgan::joint::Part& part) {
  std::vector<float> out(static_cast<size_t>(out_height * out_width));
  const int64_t height = static_cast<int64_t>(plane.size()) / width;
  blsgan::joint::resize(plane.data(), height, width, part, out.data(), out_height, out_width, out_width);
  return out;
}

void resizing_keeps_what_it_must() {
  const std::vector<float> constant(221, 0.25F);
  for (float value : resized(constant, 17, 5, 40, {1.3F, 2.6F, 15.5F, 12.9F})) {
    CHECK_NEAR(value, 0.25, 1e-7);
  }
  std::vector<float> slope(180);
  for (size_t p = 0; p < slope.size(); ++p) slope[p] = static_cast<float>(p % 30);
  CHECK(resized(slope, 30, 6, 30, {0, 0, 30, 6}) == slope);
  const std::vector<float> half = resized(slope, 30, 6, 10, {6, 0, 26, 6});
  for (size_t x = 0; x < 10; ++x) {  // away from the edges a slope is kept
    CHECK_NEAR(half[30 + x], 6.5 + 2 * static_cast<double>(x), 1e-5);
  }
}

struct Picture {
  int64_t height, width;
  std::vector<float> image;
  std::vector<uint8_t> upper, lower;
};

// Two bars that overlap in rows middle .. middle + overlap.
Picture bars(int64_t height, int64_t width, int64_t bone_width, int64_t overlap) {
  Picture picture{height, width, {}, {}, {}};
  const int64_t left = (width - bone_width) / 2, middle = height / 2;
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const bool inside = x >= left && x < left + bone_width;
      picture.image.push_back(0.3F + 0.4F * static_cast<float>((x + y) % 7) / 7);
      picture.upper.push_back(inside && y < middle + overlap);
      picture.lower.push_back(inside && y >= middle);
    }
  }
  return picture;
}

Joint joint_of(Picture p) {
  return {p.height, p.width, std::move(p.image), p.upper, p.lower};
}

// Whatever the network says, the layers are the image outside the zone and compose to it inside.
void layers_keep_their_promises() {
  Random chance;
  for (const auto& [height, width, bone, overlap] :
       {std::array<int64_t, 4>{256, 256, 150, 9}, {256, 256, 150, 0}, {900, 700, 500, 21},
        {80, 60, 30, 3}, {64, 1200, 1100, 30}, {40, 40, 1, 1}}) {
    const Picture picture = bars(height, width, bone, overlap);
    const Joint joint = joint_of(picture);
    const std::optional<blsgan::joint::Window>& planned = joint.window();
    CHECK(planned.has_value() == (overlap > 0));
    if (!planned) {
      CHECK(joint.without_overlap().residual == std::vector<float>(picture.image.size()));
      continue;
    }
    const blsgan::joint::Window& window = *planned;
    CHECK(window.height % kSizeMultiple == 0 && window.width % kSizeMultiple == 0);
    CHECK(window.height * window.width <= blsgan::joint::kMaxAreaPx);
    const NetworkInput input = joint.network_input();
    CHECK(input.image.size() * 2 == input.masks.size());
    for (const Physics& physics : {Physics{8, 0, 0}, Physics{8, 6, 0}, Physics{8, 6, 4}}) {
      Prediction prediction;
      prediction.physics = physics;
      for (size_t p = 0; p < input.masks.size(); ++p) {
        prediction.share_logits.push_back(static_cast<float>(chance(-6, 6)));
      }
      for (size_t p = 0; p < input.image.size(); ++p) {
        prediction.soft_tissue.push_back(static_cast<float>(chance(0, 0.9)));
      }
      const Layers layers = joint.split(prediction, input);
      CHECK(layers.soft_tissue > 0 && layers.soft_tissue < 0.9);
      for (size_t p = 0; p < picture.image.size(); ++p) {
        const bool up = picture.upper[p], low = picture.lower[p];
        if (!up && !low) CHECK(layers.upper[p] == 0 && layers.lower[p] == 0);
        if (physics.reach_px == 0) {  // the zone is the overlap
          if (!up) CHECK(layers.upper[p] == 0);
          if (!low) CHECK(layers.lower[p] == 0);
          if (up && !low) CHECK(layers.upper[p] == picture.image[p]);
          if (low && !up) CHECK(layers.lower[p] == picture.image[p]);
        }
        if (up || low) CHECK_NEAR(layers.reconstruction[p], picture.image[p], 1e-5);
        CHECK(layers.upper[p] >= 0 && layers.upper[p] <= 1);
      }
    }
  }
}

void joints_that_are_none() {
  Picture constant = bars(64, 64, 30, 4);
  std::fill(constant.image.begin(), constant.image.end(), 0.5F);
  CHECK(contains(failure_of([&] { joint_of(constant); }), "constant (0.5) under the bones"));
  Picture full = bars(64, 64, 64, 4);
  CHECK(contains(failure_of([&] { joint_of(full); }), "cover every pixel"));
  Picture swapped = bars(64, 64, 30, 4);
  std::swap(swapped.upper, swapped.lower);
  const std::vector<std::string> notes = joint_of(swapped).notes();
  CHECK(notes.size() == 1 && contains(notes[0], "swapped"));
}

void bones_are_as_wide_as_they_are() {
  for (int64_t width : {31, 150}) {
    const Picture picture = bars(256, 256, width, 9);
    std::vector<uint8_t> masks = picture.upper;
    masks.insert(masks.end(), picture.lower.begin(), picture.lower.end());
    const double found = blsgan::joint::bone_width_px({masks.data(), 2, 256, 256});
    CHECK_NEAR(found, static_cast<double>(width), 1e-12);
  }
}

void hashes_are_the_standards() {
  const auto hash_of = [](const std::string& content) {
    return sha256(Bytes(content.begin(), content.end()));
  };
  CHECK(hash_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hash_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(hash_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(hash_of(std::string(1000000, 'a')) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

void all_files_or_none() {
  std::string folder = (std::filesystem::temp_directory_path() / "blsgan-XXXXXX").string();
  CHECK(mkdtemp(folder.data()) != nullptr);
  const std::string out = folder + "/new/results";
  const std::string target = out + "/a", taken = out + "/b";
  std::filesystem::create_directories(out);
  const std::string left_over = out + "/.blsgan-0123456789ab.tmp.png", recent = out + "/.blsgan-abcdef.tmp";
  for (const std::string& path : {left_over, recent}) std::ofstream(path).put('x');
  std::filesystem::last_write_time(
      left_over, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  write_together(out, {{target, {1, 2}}});
  CHECK(!std::filesystem::exists(left_over) && std::filesystem::remove(recent));
  CHECK(read_file(target, "file").data == (Bytes{1, 2}));
  std::filesystem::create_directory(taken);
  const std::vector<Output> outputs = {{target, {9}}, {taken, {9}}};
  CHECK(contains(failure_of([&] { write_together(out, outputs); }), "in the way"));
  CHECK(read_file(target, "file").data == (Bytes{1, 2}));
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(out)) {
    left.push_back(entry.path().filename().string());
  }
  std::sort(left.begin(), left.end());
  CHECK(left == (std::vector<std::string>{"a", "b"}));
  const std::string below_a_file = target + "/c";
  CHECK(contains(failure_of([&] { write_together(below_a_file, {{below_a_file + "/d", {1}}}); }),
                 "cannot be written"));
  std::filesystem::remove_all(folder);
}

}  // namespace

int main() {
  pictures_come_back();
  pgm_headers();
  bits_are_guessed();
  resizing_keeps_what_it_must();
  layers_keep_their_promises();
  joints_that_are_none();
  bones_are_as_wide_as_they_are();
  hashes_are_the_standards();
  all_files_or_none();
  return report("runner");
}
