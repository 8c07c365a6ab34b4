// blsgan-infer: `blsgan separate` for one joint where there is neither Python nor PyTorch.

#include <getopt.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "failure.h"
#include "files.h"
#include "joint.h"
#include "network.h"
#include "raster.h"

namespace {

using namespace blsgan::runner;

constexpr char kHelp[] =
    R"(Usage: blsgan-infer [OPTIONS] IMAGE

  Take the overlapping bones of IMAGE apart.

  IMAGE and the masks are PNG or binary PGM (P5) files. Writes NAME_upper,
  NAME_lower, NAME_reconstruction and NAME_residual as 16-bit pictures with the
  pixels that `blsgan separate` writes. For research; not a medical device.

Options:
  --upper-mask FILE      Mask of the upper bone.  [required]
  --lower-mask FILE      Mask of the lower bone.  [required]
  -o, --output FOLDER    Folder of the results.  [required]
  --weights FILE         Network: .onnx, or .engine with TensorRT.  [required]
  --format [png|pgm]     Pictures to write.  [default: png where it is built in]
  --threads N            Threads.  [default: usable cores, at most 8]
  --bit-depth N          Bits of a 16-bit file's values, 1 to 16.  [default: from
                         the values]
  --invert               The image shows bone dark.
  --onnxruntime FILE     ONNX Runtime's libonnxruntime.so.  [default:
                         $BLSGAN_ONNXRUNTIME, else the loader's search path]
  -V, --version          Show the version and exit.
  -h, --help             Show this message and exit.
)";

struct Options {
  std::string image, upper_mask, lower_mask, output, weights, onnxruntime, format;
  int threads = 0;
  int bit_depth = 0;
  bool invert = false;
};

int whole_number(const char* option, const char* value, int low, int high) {
  char* end = nullptr;
  const long number = std::strtol(value, &end, 10);
  if (*value == '\0' || *end != '\0' || number < low || number > high) {
    throw usage_failure(text("--%s is %s; give a whole number from %d to %d.", option, value, low,
                             high));
  }
  return static_cast<int>(number);
}

// Returns false when there is nothing left to do.
bool parse(int count, char** arguments, Options& options) {
  enum : int { kUpper = 256, kLower, kWeights, kFormat, kThreads, kBits, kInvert, kLibrary };
  const option known[] = {{"upper-mask", required_argument, nullptr, kUpper},
                          {"lower-mask", required_argument, nullptr, kLower},
                          {"output", required_argument, nullptr, 'o'},
                          {"weights", required_argument, nullptr, kWeights},
                          {"format", required_argument, nullptr, kFormat},
                          {"threads", required_argument, nullptr, kThreads},
                          {"bit-depth", required_argument, nullptr, kBits},
                          {"invert", no_argument, nullptr, kInvert},
                          {"onnxruntime", required_argument, nullptr, kLibrary},
                          {"version", no_argument, nullptr, 'V'},
                          {"help", no_argument, nullptr, 'h'},
                          {nullptr, 0, nullptr, 0}};
  options.format = has_png() ? "png" : "pgm";
  for (;;) {
    const int given = getopt_long(count, arguments, ":o:Vh", known, nullptr);
    if (given == -1) break;
    switch (given) {
      case kUpper:
        options.upper_mask = optarg;
        break;
      case kLower:
        options.lower_mask = optarg;
        break;
      case 'o':
        options.output = optarg;
        break;
      case kWeights:
        options.weights = optarg;
        break;
      case kFormat:
        options.format = optarg;
        break;
      case kThreads:
        options.threads = whole_number("threads", optarg, 1, 1024);
        break;
      case kBits:
        options.bit_depth = whole_number("bit-depth", optarg, 1, 16);
        break;
      case kInvert:
        options.invert = true;
        break;
      case kLibrary:
        options.onnxruntime = optarg;
        break;
      case 'V':
        std::printf("blsgan-infer, version %s%s%s\n", BLSGAN_VERSION,
                    has_png() ? "" : ", without PNG", has_tensorrt() ? ", with TensorRT" : "");
        return false;
      case 'h':
        std::fputs(kHelp, stdout);
        return false;
      case ':':
        throw usage_failure(std::string(arguments[optind - 1]) +
                            " needs a value; blsgan-infer --help lists the options.");
      default:
        throw usage_failure(std::string(arguments[optind - 1]) +
                            " is not an option, or not in this way; blsgan-infer --help lists them.");
    }
  }
  if (count - optind != 1) {
    throw usage_failure(text("%d images were given; give one.", count - optind));
  }
  options.image = arguments[optind];
  const std::pair<const char*, const std::string&> required[] = {
      {"--upper-mask", options.upper_mask},
      {"--lower-mask", options.lower_mask},
      {"--output", options.output},
      {"--weights", options.weights}};
  for (const auto& [name, value] : required) {
    if (value.empty()) throw usage_failure(std::string(name) + " is missing; give it.");
  }
  if (options.format != "pgm" && options.format != "png") {
    throw usage_failure("--format is " + options.format + "; give png or pgm.");
  }
  if (options.format == "png" && !has_png()) {
    throw usage_failure("this blsgan-infer was built without libpng; give --format pgm.");
  }
  return true;
}

std::unique_ptr<Network> load_network(const Options& options) {
  const std::string kind = suffix(options.weights);
  const bool plan = kind == ".engine" || kind == ".plan";
  if (!plan && kind != ".onnx") {
    throw data_failure(options.weights + " is not a network; give an .onnx or an .engine file.");
  }
  File weights = read_file(options.weights, "weights");
  return plan ? load_tensorrt(weights)
              : load_onnxruntime(std::move(weights), options.onnxruntime, options.threads);
}

Joint read_joint(const Options& options, std::vector<std::string>& notes) {
  const Radiograph radiograph =
      decode_radiograph(read_file(options.image, "image"), options.bit_depth, options.invert);
  const int64_t height = radiograph.height, width = radiograph.width;
  const std::vector<uint8_t> upper = decode_mask(read_file(options.upper_mask, "mask"), height, width);
  const std::vector<uint8_t> lower = decode_mask(read_file(options.lower_mask, "mask"), height, width);
  if (upper == lower) {
    throw data_failure(options.upper_mask + " and " + options.lower_mask +
                       " hold the same mask; give one mask for each bone.");
  }
  notes = radiograph.notes;
  try {
    return {height, width, radiograph.pixels, upper, lower};
  } catch (const Failure& failure) {
    throw Failure(failure.status, options.image + ": " + failure.what());
  }
}

// Intensities in [0,1] as 0..65535, rounded to even; residuals in [-1,1] with 0 at 32768.
std::vector<uint16_t> to_uint16(const std::vector<float>& plane, bool residual) {
  std::vector<uint16_t> levels;
  levels.reserve(plane.size());
  for (float value : plane) {
    const float scaled = residual ? std::fmax(-1.0F, std::fmin(value, 1.0F)) * 32767.0F
                                  : std::fmax(0.0F, std::fmin(value, 1.0F)) * 65535.0F;
    levels.push_back(static_cast<uint16_t>(std::nearbyint(scaled) + (residual ? 32768.0F : 0.0F)));
  }
  return levels;
}

void run(const Options& options) {
  std::vector<std::string> notes;
  const Joint joint = read_joint(options, notes);
  notes.insert(notes.end(), joint.notes().begin(), joint.notes().end());

  const std::string base = options.output + "/" + stem(options.image) + "_";
  std::vector<Output> outputs;
  for (const char* plane : {"upper", "lower", "reconstruction", "residual"}) {
    outputs.push_back({base + plane + "." + options.format, {}});
    for (const std::string* input : {&options.image, &options.upper_mask, &options.lower_mask}) {
      if (same_file(*input, outputs.back().path)) {
        throw usage_failure(*input +
                            " is an input and would be overwritten by a result of that name; choose "
                            "another output folder.");
      }
    }
  }

  Layers layers;
  if (joint.window()) {
    const std::unique_ptr<Network> network = load_network(options);
    const NetworkInput input = joint.network_input();
    const Prediction prediction = network->run(input);
    layers = joint.split(prediction, input);
    notes.insert(notes.end(), layers.notes.begin(), layers.notes.end());
  } else {
    layers = joint.without_overlap();
  }

  const std::vector<float>* planes[] = {&layers.upper, &layers.lower, &layers.reconstruction,
                                        &layers.residual};
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::vector<uint16_t> levels = to_uint16(*planes[i], i == 3);
    outputs[i].data = options.format == "png"
                          ? encode_png(levels, joint.height(), joint.width())
                          : encode_pgm(levels, joint.height(), joint.width());
  }
  write_together(options.output, outputs);

  if (joint.window()) {
    double squares = 0;
    for (float value : layers.residual) squares += static_cast<double>(value) * value;
    std::printf("overlap %lld px, soft tissue %.3f, reconstruction MSE %.1e\n",
                static_cast<long long>(joint.overlap_px()), layers.soft_tissue,
                squares / static_cast<double>(joint.covered_px()));
  } else {
    std::puts("no overlap: each layer is the image inside its mask");
  }
  for (const std::string& note : notes) std::printf("note: %s\n", note.c_str());
  std::printf("wrote %s and %zu more files\n", outputs[0].path.c_str(), outputs.size() - 1);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    Options options;
    if (parse(count, arguments, options)) run(options);
    return 0;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "blsgan-infer: %s\n", failure.what());
    return failure.status;
  } catch (const std::bad_alloc&) {
    std::fputs("blsgan-infer: out of memory; crop the image to the joint first.\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "blsgan-infer: unexpected error (%s); please report this.\n", error.what());
  }
  return 1;
}
