#include "png_codec.h"

#include "failure.h"

#if defined(BLSGAN_PNG)
#include <png.h>

#include <algorithm>
#include <cctype>
#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

namespace blsgan::runner {
namespace {

// What libpng's callbacks see. An error returns to the setjmp of the function that is running, so
// those functions hold no object with a destructor.
struct Reader {
  const uint8_t* data = nullptr;
  size_t size = 0;
  size_t at = 0;
  char error[160] = "";
  png_structp png = nullptr;
  png_infop info = nullptr;
};

struct Header {
  uint32_t width = 0;
  uint32_t height = 0;
  int depth = 0;
  int colour = 0;
  bool transparent = false;
  int transparent_level = -1;
};

void remember_error(char (&kept)[160], png_structp png, const char* message) {
  std::strncpy(kept, message, sizeof kept - 1);
  png_longjmp(png, 1);
}
void on_read_error(png_structp png, const char* message) {
  remember_error(static_cast<Reader*>(png_get_error_ptr(png))->error, png, message);
}
void on_warning(png_structp, const char*) {}

void read_bytes(png_structp png, png_bytep target, size_t count) {
  auto* reader = static_cast<Reader*>(png_get_io_ptr(png));
  if (count > reader->size - reader->at) png_error(png, "the file ends early");
  std::memcpy(target, reader->data + reader->at, count);
  reader->at += count;
}

bool read_header(Reader& reader, Header& header) {
  if (setjmp(png_jmpbuf(reader.png))) return false;  // NOLINT(cert-err52-cpp)
  png_set_read_fn(reader.png, &reader, read_bytes);
  png_read_info(reader.png, reader.info);
  png_get_IHDR(reader.png, reader.info, &header.width, &header.height, &header.depth, &header.colour,
               nullptr, nullptr, nullptr);
  png_bytep alphas = nullptr;
  png_color_16p level = nullptr;
  int count = 0;
  if (png_get_tRNS(reader.png, reader.info, &alphas, &count, &level) != 0) {
    header.transparent = true;
    if (header.colour == PNG_COLOR_TYPE_GRAY && level != nullptr) {
      const int step = header.depth < 8 ? 255 / ((1 << header.depth) - 1) : 1;
      header.transparent_level = level->gray * step;
    }
  }
  return true;
}

// Everything below 16 bit becomes 8 bit; colours and transparency become channels.
bool set_conversions(Reader& reader, const Header& header, size_t& row_bytes, int& channels) {
  if (setjmp(png_jmpbuf(reader.png))) return false;  // NOLINT(cert-err52-cpp)
  if (header.colour == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(reader.png);
  if (header.colour == PNG_COLOR_TYPE_GRAY && header.depth < 8) {
    png_set_expand_gray_1_2_4_to_8(reader.png);
  }
  if (header.transparent && header.colour != PNG_COLOR_TYPE_GRAY) png_set_tRNS_to_alpha(reader.png);
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  row_bytes = png_get_rowbytes(reader.png, reader.info);
  channels = png_get_channels(reader.png, reader.info);
  return true;
}

bool read_rows(Reader& reader, png_bytepp rows) {
  if (setjmp(png_jmpbuf(reader.png))) return false;  // NOLINT(cert-err52-cpp)
  png_read_image(reader.png, rows);
  png_read_end(reader.png, reader.info);  // text may follow the pixels
  return true;
}

uint32_t big_endian(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | bytes[3];
}

// The content of the first chunk of this type, {nullptr, 0} where there is none.
struct Chunk {
  const uint8_t* data = nullptr;
  size_t size = 0;
};
Chunk find_chunk(const Bytes& png, const char* type) {
  size_t at = 8;
  while (png.size() - at >= 12) {
    const size_t size = big_endian(&png[at]);
    if (size > png.size() - at - 12) break;
    if (std::memcmp(&png[at + 4], type, 4) == 0) return {&png[at + 8], size};
    at += size + 12;
  }
  return {};
}

constexpr int kNone = -1;

// The orientation that EXIF data give, kNone where they give none.
int exif_orientation(Chunk exif) {
  for (int i = 0; i < 2 && exif.size >= 6 && std::memcmp(exif.data, "Exif\0\0", 6) == 0; ++i) {
    exif = {exif.data + 6, exif.size - 6};  // as in a JPEG; a PNG's own chunk begins after it
  }
  if (exif.size < 8) return kNone;
  const bool little = exif.data[0] == 'I';
  const auto number = [&](size_t at, size_t bytes) -> uint32_t {
    uint32_t value = 0;
    for (size_t i = 0; i < bytes && at + i < exif.size; ++i) {
      value |= uint32_t{exif.data[at + i]} << 8 * (little ? i : bytes - 1 - i);
    }
    return value;
  };
  const size_t first = number(4, 4);
  if (first > exif.size - 2) return kNone;
  const size_t entries = number(first, 2);
  for (size_t i = 0; i < entries && first + 2 + 12 * (i + 1) <= exif.size; ++i) {
    const size_t entry = first + 2 + 12 * i;
    if (number(entry, 2) == 274) return static_cast<int>(number(entry + 8, 2));
  }
  return kNone;
}

// The last text of a PNG with this keyword, whichever kind of text chunk holds it; "" without one.
std::string find_text(const Reader& reader, const char* keyword) {
  png_textp texts = nullptr;
  int count = 0;
  png_get_text(reader.png, reader.info, &texts, &count);
  std::string found;
  for (int i = 0; i < count; ++i) {
    const png_text& entry = texts[i];
    if (std::strcmp(entry.key, keyword) != 0 || entry.text == nullptr) continue;
    const bool international = entry.compression >= PNG_ITXT_COMPRESSION_NONE;
    found.assign(entry.text, international ? entry.itxt_length : entry.text_length);
  }
  return found;
}

// What a "Raw profile type exif" holds: three lines (empty, name, length), then hexadecimal digits.
Bytes raw_profile(const File& file, const std::string& profile) {
  size_t at = 0;
  for (int line = 0; line < 3 && at != std::string::npos; ++line) {
    at = profile.find('\n', at);
    if (at != std::string::npos) ++at;
  }
  const auto broken = [&] {
    return data_failure(file.path + " is damaged or truncated (its EXIF profile is not hexadecimal); "
                                    "export or copy it again.");
  };
  Bytes bytes;
  int high = -1;
  for (; at < profile.size(); ++at) {
    const auto letter = static_cast<unsigned char>(profile[at]);
    if (std::isspace(letter) != 0) continue;
    if (std::isxdigit(letter) == 0) throw broken();
    const int digit = std::isdigit(letter) != 0 ? letter - '0' : std::tolower(letter) - 'a' + 10;
    if (high < 0) {
      high = digit;
    } else {
      bytes.push_back(static_cast<uint8_t>(16 * high + digit));
      high = -1;
    }
  }
  if (high >= 0) throw broken();
  return bytes;
}

// The first tiff:Orientation of XMP text, as attribute or element; kNone where there is none.
int xmp_orientation(const std::string& xmp) {
  constexpr char kName[] = "tiff:Orientation";
  for (size_t at = xmp.find(kName); at != std::string::npos; at = xmp.find(kName, at + 1)) {
    size_t value = at + sizeof kName - 1;
    if (xmp.compare(value, 2, "=\"") == 0) {
      value += 2;
    } else if (xmp.compare(value, 1, ">") == 0) {
      value += 1;
    } else {
      continue;
    }
    if (value < xmp.size() && xmp[value] >= '0' && xmp[value] <= '9') return xmp[value] - '0';
  }
  return kNone;
}

// Where Pillow looks, in its order: the chunk, else the text that older programs write it into; and
// XMP where neither names an orientation.
int orientation_of(const File& file, const Reader& reader) {
  Chunk exif = find_chunk(file.data, "eXIf");
  Bytes profile;
  if (exif.data == nullptr) {
    profile = raw_profile(file, find_text(reader, "Raw profile type exif"));
    exif = {profile.data(), profile.size()};
  }
  const int orientation = exif_orientation(exif);
  return orientation != kNone ? orientation
                              : xmp_orientation(find_text(reader, "XML:com.adobe.xmp"));
}

Failure damaged(const File& file, const Reader& reader) {
  return data_failure(file.path + " is damaged or truncated (" + reader.error +
                      "); export or copy it again.");
}
Failure transparent(const File& file) {
  return data_failure(file.path +
                      " is partly transparent, so its grey values are ambiguous; save it without an "
                      "alpha channel.");
}

// The common channel of 8-bit pixels of 2 (grey, alpha), 3 or 4 (red, green, blue, alpha) channels.
void take_one_channel(const File& file, const Bytes& pixels, int channels, Raster& raster) {
  const bool alpha = channels % 2 == 0;
  int spread = 0;
  for (size_t p = 0; p < raster.values.size(); ++p) {
    const uint8_t* pixel = &pixels[p * static_cast<size_t>(channels)];
    if (alpha && pixel[channels - 1] < 255) throw transparent(file);
    const auto [low, high] = std::minmax_element(pixel, pixel + (alpha ? channels - 1 : channels));
    spread = std::max(spread, *high - *low);
    raster.values[p] = pixel[0];
  }
  if (spread > 0) {
    throw data_failure(text("%s is a colour picture (its channels differ by up to %d of 255); save it "
                            "as greyscale.",
                            file.path.c_str(), spread));
  }
}

struct ReadStruct {
  Reader reader;
  explicit ReadStruct(const File& file) {
    reader.data = file.data.data();
    reader.size = file.data.size();
    reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, on_read_error, on_warning);
    if (reader.png != nullptr) reader.info = png_create_info_struct(reader.png);
    if (reader.info == nullptr) throw std::bad_alloc();
  }
  ~ReadStruct() { png_destroy_read_struct(&reader.png, &reader.info, nullptr); }
  ReadStruct(const ReadStruct&) = delete;
  ReadStruct& operator=(const ReadStruct&) = delete;
};

struct Writer {
  Bytes bytes;
  char error[160] = "";
};
void on_write_error(png_structp png, const char* message) {
  remember_error(static_cast<Writer*>(png_get_error_ptr(png))->error, png, message);
}
void write_bytes(png_structp png, png_bytep data, size_t count) {
  Bytes& bytes = static_cast<Writer*>(png_get_io_ptr(png))->bytes;
  bool stored = true;
  try {
    bytes.insert(bytes.end(), data, data + count);
  } catch (const std::bad_alloc&) {  // must not leave through libpng
    stored = false;
  }
  if (!stored) png_error(png, "out of memory");
}
void flush_nothing(png_structp) {}

bool write_picture(png_structp png, png_infop info, Writer& writer, png_bytepp rows, uint32_t height,
                   uint32_t width) {
  if (setjmp(png_jmpbuf(png))) return false;  // NOLINT(cert-err52-cpp)
  png_set_write_fn(png, &writer, write_bytes, flush_nothing);
  png_set_compression_level(png, 4);
  png_set_IHDR(png, info, width, height, 16, PNG_COLOR_TYPE_GRAY, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(png, info);
  png_write_image(png, rows);
  png_write_end(png, nullptr);
  return true;
}

std::vector<png_bytep> row_pointers(Bytes& bytes, size_t row_bytes, size_t height) {
  std::vector<png_bytep> rows(height);
  for (size_t y = 0; y < height; ++y) rows[y] = bytes.data() + y * row_bytes;
  return rows;
}

}  // namespace

bool has_png() { return true; }

Raster decode_png(const File& file) {
  ReadStruct owner(file);
  Reader& reader = owner.reader;
  Header header;
  if (!read_header(reader, header)) throw damaged(file, reader);
  check_size(file.path, header.height, header.width);
  if (header.depth == 16 && header.colour != PNG_COLOR_TYPE_GRAY) {
    throw data_failure(file.path +
                       " stores colour or transparency at 16 bit per channel; save it as 16-bit "
                       "greyscale (one channel).");
  }
  if (find_chunk(file.data, "acTL").data != nullptr) {
    throw data_failure(file.path +
                       " holds more than one picture; save the one to use as a file of its own.");
  }
  size_t row_bytes = 0;
  int channels = 0;
  if (!set_conversions(reader, header, row_bytes, channels)) throw damaged(file, reader);
  Bytes pixels(row_bytes * header.height);
  std::vector<png_bytep> rows = row_pointers(pixels, row_bytes, header.height);
  if (!read_rows(reader, rows.data())) throw damaged(file, reader);
  const int orientation = orientation_of(file, reader);
  if (orientation > 1) {
    throw data_failure(text("%s is to be turned by its EXIF orientation %d, which is not done here; "
                            "save it upright.",
                            file.path.c_str(), orientation));
  }

  Raster raster;
  raster.height = header.height;
  raster.width = header.width;
  raster.values.resize(size_t{header.height} * header.width);
  if (header.depth == 16) {
    raster.full = 65535;
    raster.container_bits = 16;
    for (size_t p = 0; p < raster.values.size(); ++p) {
      raster.values[p] = static_cast<uint16_t>(pixels[2 * p] << 8 | pixels[2 * p + 1]);
    }
  } else if (channels == 1) {
    std::copy(pixels.begin(), pixels.end(), raster.values.begin());
  } else {
    take_one_channel(file, pixels, channels, raster);
  }
  if (header.transparent_level >= 0 &&
      std::find(raster.values.begin(), raster.values.end(), header.transparent_level) !=
          raster.values.end()) {
    throw transparent(file);
  }
  return raster;
}

Bytes encode_png(const std::vector<uint16_t>& values, int64_t height, int64_t width) {
  Bytes pixels(2 * values.size());
  for (size_t p = 0; p < values.size(); ++p) {
    pixels[2 * p] = static_cast<uint8_t>(values[p] >> 8);
    pixels[2 * p + 1] = static_cast<uint8_t>(values[p] & 0xff);
  }
  std::vector<png_bytep> rows =
      row_pointers(pixels, 2 * static_cast<size_t>(width), static_cast<size_t>(height));
  Writer writer;
  png_structp png =
      png_create_write_struct(PNG_LIBPNG_VER_STRING, &writer, on_write_error, on_warning);
  png_infop info = png != nullptr ? png_create_info_struct(png) : nullptr;
  const bool written = info != nullptr &&
                       write_picture(png, info, writer, rows.data(), static_cast<uint32_t>(height),
                                     static_cast<uint32_t>(width));
  if (png != nullptr) png_destroy_write_struct(&png, &info);
  if (!written) throw data_failure(std::string("a PNG cannot be made (") + writer.error + ").");
  return writer.bytes;
}

}  // namespace blsgan::runner

#else

namespace blsgan::runner {

bool has_png() { return false; }

Raster decode_png(const File& file) {
  throw data_failure(file.path +
                     " is a PNG, and this blsgan-infer was built without libpng; give a binary PGM, or "
                     "build again where libpng is.");
}

Bytes encode_png(const std::vector<uint16_t>&, int64_t, int64_t) {
  throw usage_failure("this blsgan-infer was built without libpng; give --format pgm.");
}

}  // namespace blsgan::runner
#endif
