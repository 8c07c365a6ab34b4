// Every CUDA kernel, emulated, against its CPU twin on random cases: sizes, element types, layouts,
// values. What the kernels do wrong with threads and memory the emulator finds by itself.
//
//   test_emulated [CASES [OP]]     that many random cases (default 24), of every op or of one

#include <sys/mman.h>

#include <cstdlib>
#include <functional>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "check.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "emulator.h"

using namespace blsgan;
using emulator::Memory;

namespace {

double get(DType dtype, const void* where) {
  uint16_t half = 0;
  float single = 0;
  double wide = 0;
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(&single, where, 4);
      return single;
    case DType::kFloat64:
      std::memcpy(&wide, where, 8);
      return wide;
    case DType::kFloat16:
      std::memcpy(&half, where, 2);
      return __half2float(__ushort_as_half(half));
    case DType::kBFloat16:
      std::memcpy(&half, where, 2);
      return __bfloat162float({half});
    default:
      return *static_cast<const uint8_t*>(where);
  }
}

void put(DType dtype, void* where, double value) {
  const auto single = static_cast<float>(value);
  const uint16_t half = dtype == DType::kFloat16
                            ? __half_as_ushort(__float2half_rn(single))
                            : __bfloat16_as_ushort(__float2bfloat16_rn(single));
  if (dtype == DType::kFloat32) std::memcpy(where, &single, 4);
  if (dtype == DType::kFloat64) std::memcpy(where, &value, 8);
  if (dtype == DType::kFloat16 || dtype == DType::kBFloat16) std::memcpy(where, &half, 2);
  if (dtype == DType::kUInt8) *static_cast<uint8_t*>(where) = static_cast<uint8_t>(value);
}

// A tensor [B,C,P] in some layout; `memory` has not a byte more than it needs.
struct Tensor {
  std::vector<uint8_t> memory;
  int64_t batch, channels, pixels, skipped;
  MutableView layout;

  uint8_t* where(int64_t b, int64_t c, int64_t p) {
    const int64_t offset =
        b * layout.stride_batch + c * layout.stride_channel + p * layout.stride_pixel;
    return memory.data() + (skipped + offset) * size_of(layout.dtype);
  }
  double at(int64_t b, int64_t c, int64_t p) { return get(layout.dtype, where(b, c, p)); }
  MutableView out() {
    MutableView view = layout;
    view.data = memory.data() + skipped * size_of(layout.dtype);
    return view;
  }
  View view() {
    const MutableView v = out();
    return {v.data, v.stride_batch, v.stride_channel, v.stride_pixel, v.dtype};
  }
  // A vector, [B], has no pixels to step over.
  Tensor& as_vector() {
    layout.stride_pixel = 0;
    return *this;
  }
};

struct Case {
  Random& random;
  Shape shape;
  bool wide;
  bool spoiled;  // some values are NaN
  double law = 0.0;
  bool soft_map = false;
  std::vector<Tensor*> inputs = {}, outputs[2] = {}, scratch[2] = {};
  std::vector<std::unique_ptr<Tensor>> all = {};

  int64_t pick(int64_t count) {
    return static_cast<int64_t>(random(0, static_cast<double>(count))) % count;
  }
  DType floating() { return static_cast<DType>(pick(4)); }

  Tensor& tensor(DType dtype, int64_t batch, int64_t channels, int64_t pixels, int64_t kind) {
    auto made = std::make_unique<Tensor>(Tensor{{}, batch, channels, pixels, 0, {}});
    made->layout = {nullptr, channels * pixels, pixels, 1, dtype};
    int64_t count = batch * channels * pixels;
    if (kind == 1) {  // channels last
      made->layout.stride_channel = 1;
      made->layout.stride_pixel = channels;
    } else if (kind == 2) {  // off the grid of vectors
      made->skipped = 1;
    } else if (kind == 3 && batch > 0) {  // one image for the whole batch
      made->layout.stride_batch = 0;
      count = channels * pixels;
    }
    made->memory.resize(static_cast<size_t>((count + made->skipped) * size_of(dtype)));
    all.push_back(std::move(made));
    return *all.back();
  }
  Tensor& input(DType dtype, int64_t batch, int64_t channels, int64_t pixels,
                const std::function<double()>& value) {
    Tensor& made = tensor(dtype, batch, channels, pixels, pick(4));
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t p = 0; p < pixels; ++p) put(dtype, made.where(b, c, p), value());
      }
    }
    if (spoiled && dtype != DType::kUInt8 && batch * pixels > 0) {
      put(dtype, made.where(0, 0, pick(pixels)), std::numeric_limits<double>::quiet_NaN());
    }
    inputs.push_back(&made);
    return made;
  }
  Tensor& image(double low, double high, int64_t channels = 1) {
    return input(floating(), shape.batch, channels, shape.pixels(),
                 [=] { return random(low, high); });
  }
  Tensor& layers(double low, double high) { return image(low, high, shape.layers); }
  Tensor& masks() {
    const DType dtype = pick(2) == 0 ? DType::kUInt8 : floating();
    const double share = pick(3) == 0 ? random(-0.5, 1.5) : 0.6;
    const bool keep = std::exchange(spoiled, false);
    Tensor& made = input(dtype, shape.batch, shape.layers, shape.pixels(),
                         [=] { return random(0, 1) < share ? 1.0 + static_cast<double>(pick(9)) : 0.0; });
    spoiled = keep;
    return made;
  }
  Tensor& each(const std::function<double()>& value) {
    return input(floating(), shape.batch, 1, 1, value).as_vector();
  }
  // One value for each image or a map, under either law.
  Tensor& soft_tissue() {
    law = pick(2) == 0 ? 0.0 : 7.4;
    soft_map = pick(2) == 0;
    const auto value = [=] {
      const double limits[] = {0.0, 0.95, -0.5, 0.99};
      return pick(3) == 0 ? limits[pick(4)] : random(0.1, 0.6);
    };
    return soft_map ? input(floating(), shape.batch, 1, shape.pixels(), value) : each(value);
  }
  Tensor& shift() {
    const double height = static_cast<double>(shape.height);
    const double limits[] = {0.0, -1e-9, 0.5, height, -1e30, std::nan("")};
    return each([=] { return pick(2) == 0 ? limits[pick(6)] : random(-height, height) / 2; });
  }
  // For each of the two backends.
  struct Pair {
    Tensor* of[2];
    MutableView operator[](int which) const { return of[which]->out(); }
  };
  Pair output(DType dtype, int64_t batch, int64_t channels, int64_t pixels) {
    Pair pair{};
    const int64_t kind = 2 * pick(2);  // outputs are contiguous
    for (int which = 0; which < 2; ++which) {
      pair.of[which] = &tensor(dtype, batch, channels, pixels, kind);
      outputs[which].push_back(pair.of[which]);
    }
    return pair;
  }
  Pair plane(int64_t channels) {
    return output(floating(), shape.batch, channels, shape.pixels());
  }
  Pair vector() {
    const Pair pair = output(floating(), shape.batch, 1, 1);
    for (Tensor* each : pair.of) each->as_vector();
    return pair;
  }
  Pair soft_tissue_gradient() { return soft_map ? plane(1) : vector(); }
  template <typename T>
  T* scratch_of(int which, DType dtype, int64_t count) {
    Tensor& made = tensor(dtype, 1, 1, count, 0);
    scratch[which].push_back(&made);
    return reinterpret_cast<T*>(made.memory.data());
  }
  double* partials(int which, int64_t columns) {
    const int64_t rows = std::max(synthesis_items(shape), item_count(shape));
    return scratch_of<double>(which, DType::kFloat64, rows * columns);
  }

  // Runs what `make` gives for each backend and compares all outputs.
  template <typename Make>
  void run(const char* name, const Make& make) {
    if (shape.batch * shape.pixels() == 0) return;
    CpuContext cpu;
    cpu.wide = wide;
    cpu.parallel_for = backwards_for;
    run_cpu(make(0), cpu);
    const auto declare = [](const std::vector<Tensor*>& tensors, Memory memory) {
      for (Tensor* t : tensors) {
        const int64_t element = size_of(t->layout.dtype), skipped = t->skipped * element;
        emulator::declare(t->memory.data() + skipped,
                          static_cast<int64_t>(t->memory.size()) - skipped, memory, element);
      }
    };
    CudaContext cuda;
    cuda.wide = wide;
    try {
      const auto args = make(1);
      declare(inputs, Memory::kInput);
      declare(outputs[1], Memory::kOutput);
      declare(scratch[1], Memory::kScratch);
      emulator::run([&] { run_cuda(args, cuda); });
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
      ++failures;
    }
    for (size_t i = 0; i < outputs[0].size(); ++i) compare(name, *outputs[0][i], *outputs[1][i]);
    for (auto& list : {std::ref(outputs[0]), std::ref(outputs[1]), std::ref(inputs)}) list.get().clear();
    for (auto& list : scratch) list.clear();
  }
  void compare(const char* name, Tensor& want, Tensor& got) {
    double largest = 1e-30, worst = 0;
    int64_t unlike = 0;
    const auto every = [&](auto&& visit) {
      for (int64_t b = 0; b < want.batch; ++b) {
        for (int64_t c = 0; c < want.channels; ++c) {
          for (int64_t p = 0; p < want.pixels; ++p) visit(want.at(b, c, p), got.at(b, c, p));
        }
      }
    };
    every([&](double w, double) {
      if (std::isfinite(w)) largest = std::max(largest, std::fabs(w));
    });
    every([&](double w, double g) {
      if (std::isfinite(w) && std::isfinite(g)) {
        worst = std::max(worst, std::fabs(w - g));
      } else if (std::isnan(w) != std::isnan(g) || (!std::isnan(w) && w != g)) {
        ++unlike;
      }
    });
    const DType dtype = want.layout.dtype;
    const double step = dtype == DType::kFloat16    ? 1e-3
                        : dtype == DType::kBFloat16 ? 8e-3
                        : wide && dtype == DType::kFloat64 ? 1e-12
                                                           : 4e-6;
    if (unlike == 0 && worst <= 2 * step * largest) return;
    std::printf("%s %lldx%lldx%lldx%lld%s: differs by %.3g of %.3g, %lld not finite in one alone\n",
                name, static_cast<long long>(shape.batch), static_cast<long long>(shape.layers),
                static_cast<long long>(shape.height), static_cast<long long>(shape.width),
                wide ? " wide" : "", worst, largest, static_cast<long long>(unlike));
    ++failures;
  }
};

void compose_layers(Case& c) {
  Tensor &layers = c.layers(0, 1), &masks = c.masks(), &soft = c.soft_tissue();
  const auto composed = c.plane(1);
  c.run("compose_layers", [&](int which) {
    return ComposeLayers{c.shape, layers.view(), masks.view(), soft.view(), composed[which],
                         c.law};
  });
  Tensor& grad = c.image(-1, 1);
  c.inputs = {&grad, &layers, &masks, &soft};
  const auto on_layers = c.plane(c.shape.layers), on_soft = c.soft_tissue_gradient();
  c.run("compose_layers backward", [&](int which) {
    return ComposeLayersBackward{c.shape,          grad.view(),    layers.view(),
                                 masks.view(),     soft.view(),    on_layers[which],
                                 on_soft[which],   c.partials(which, 1), c.law};
  });
}

void split_attenuation(Case& c) {
  Tensor &logits = c.layers(-3, 3), &image = c.image(-0.05, 1.05), &masks = c.masks(),
         &soft = c.soft_tissue();
  const auto layers = c.plane(c.shape.layers);
  c.run("split_attenuation", [&](int which) {
    return SplitAttenuation{c.shape,      logits.view(), image.view(),
                            masks.view(), soft.view(),   layers[which],
                            c.law};
  });
  Tensor& grad = c.layers(-1, 1);
  c.inputs = {&grad, &logits, &image, &masks, &soft};
  const auto on_logits = c.plane(c.shape.layers), on_soft = c.soft_tissue_gradient();
  Case::Pair on_image{};
  const bool with_image = c.pick(2) == 0;
  if (with_image) on_image = c.plane(1);
  c.run("split_attenuation backward", [&](int which) {
    return SplitAttenuationBackward{c.shape,
                                    grad.view(),
                                    logits.view(),
                                    image.view(),
                                    masks.view(),
                                    soft.view(),
                                    on_logits[which],
                                    with_image ? on_image[which] : MutableView{},
                                    on_soft[which],
                                    c.partials(which, 1),
                                    c.law};
  });
}

// The forward pass's statistics, [K], and a scalar loss or its gradient.
struct Loss {
  Case::Pair loss, statistics;
  explicit Loss(Case& c, int64_t count)
      : loss(c.output(c.floating(), 1, 1, 1)),
        statistics(c.output(DType::kFloat64, 1, 1, count)) {
    for (Tensor* each : statistics.of) *each = c.tensor(DType::kFloat64, 1, 1, count, 0);
  }
  double* data(int which) const { return static_cast<double*>(statistics[which].data); }
  // What the backward pass reads.
  Tensor* input() const { return statistics.of[0]; }
};

void reconstruction_loss(Case& c) {
  Tensor &layers = c.layers(0, 1), &masks = c.masks(), &soft = c.soft_tissue(),
         &image = c.image(0, 1);
  const Loss loss(c, 2);
  c.run("reconstruction_loss", [&](int which) {
    return ReconstructionLoss{c.shape,      layers.view(),    masks.view(),
                              soft.view(),  image.view(),     loss.loss[which],
                              loss.data(which), c.partials(which, kRmseSums),
                              c.law};
  });
  Tensor& grad = c.input(DType::kFloat32, 1, 1, 1, [&] { return c.random(-2, 2); });
  c.inputs = {&grad, &layers, &masks, &soft, &image, loss.input()};
  const auto on_layers = c.plane(c.shape.layers), on_soft = c.soft_tissue_gradient();
  Case::Pair on_image{};
  const bool with_image = c.pick(2) == 0;
  if (with_image) on_image = c.plane(1);
  c.run("reconstruction_loss backward", [&](int which) {
    return ReconstructionLossBackward{c.shape,
                                      grad.view(),
                                      layers.view(),
                                      masks.view(),
                                      soft.view(),
                                      image.view(),
                                      loss.data(0),
                                      on_layers[which],
                                      on_soft[which],
                                      with_image ? on_image[which] : MutableView{},
                                      c.partials(which, 1),
                                      c.law};
  });
}

void layer_loss(Case& c) {
  Tensor &layers = c.layers(0, 1), &truth = c.layers(0, 1), &masks = c.masks();
  const Loss loss(c, 2);
  c.run("layer_loss", [&](int which) {
    return LayerLoss{c.shape,          layers.view(),    truth.view(),
                     masks.view(),     loss.loss[which], loss.data(which),
                     c.partials(which, kRmseSums)};
  });
  Tensor& grad = c.input(DType::kFloat64, 1, 1, 1, [&] { return c.random(-2, 2); });
  c.inputs = {&grad, &layers, &truth, &masks, loss.input()};
  const auto on_layers = c.plane(c.shape.layers);
  Case::Pair on_truth{};
  const bool with_truth = c.pick(2) == 0;
  if (with_truth) on_truth = c.plane(c.shape.layers);
  c.run("layer_loss backward", [&](int which) {
    return LayerLossBackward{c.shape,      grad.view(),  layers.view(),
                             truth.view(), masks.view(), loss.data(0),
                             on_layers[which], with_truth ? on_truth[which] : MutableView{}};
  });
}

void supervisor_loss(Case& c) {
  Tensor &logits = c.image(-5, 5, 2 * c.shape.layers), &masks = c.masks();
  const auto target = static_cast<SupervisorTarget>(c.pick(3));
  const bool hybrid = c.pick(2) == 0;
  const Loss loss(c, kSupervisorStatistics);
  c.run("supervisor_loss", [&](int which) {
    return SupervisorLoss{c.shape, logits.view(),    masks.view(),     target,
                          hybrid,  loss.loss[which], loss.data(which),
                          c.partials(which, kSupervisorSums)};
  });
  Tensor& grad = c.input(DType::kFloat32, 1, 1, 1, [&] { return c.random(-2, 2); });
  c.inputs = {&grad, &logits, &masks, loss.input()};
  const auto on_logits = c.plane(2 * c.shape.layers);
  c.run("supervisor_loss backward", [&](int which) {
    return SupervisorLossBackward{c.shape,      grad.view(), logits.view(),
                                  masks.view(), target,      loss.data(0),
                                  on_logits[which]};
  });
}

void synthesize_overlap(Case& c) {
  Tensor &image = c.image(0, 1), &masks = c.masks(), &background = c.image(0.1, 0.4),
         &upper = c.shift(), &lower = c.shift();
  const DType mask_dtype = masks.layout.dtype;
  const auto composed = c.plane(1);
  // What the second kernel reads back has to hold what the first one wrote.
  const auto moved = c.output(mask_dtype, c.shape.batch, c.shape.layers, c.shape.pixels());
  const auto layers = c.plane(c.shape.layers);
  const auto soft = c.output(c.wide ? DType::kFloat64 : DType::kFloat32, c.shape.batch, 1, 1);
  c.run("synthesize_overlap", [&](int which) {
    uint8_t* planes = c.scratch_of<uint8_t>(which, DType::kUInt8,
                                            2 * c.shape.batch * c.shape.pixels());
    return SynthesizeOverlap{c.shape,         image.view(),  masks.view(),  background.view(),
                             upper.view(),    lower.view(),  composed[which], moved[which],
                             layers[which],   soft[which],   c.partials(which, kSynthesisSums),
                             planes};
  });
}

// Images 2^33 elements apart: an offset of 32 bits would read somewhere else.
void check_long_strides() {
  constexpr int64_t kStride = int64_t{1} << 33, kBytes = 4 * (kStride + 64);
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED);
  if (memory == MAP_FAILED) return;
  auto* values = static_cast<float*>(memory);
  const Shape shape{2, 2, 4, 4};
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t i = 0; i < 32; ++i) values[b * kStride + i] = static_cast<float>(1 + 2 * b);
  }
  const std::vector<float> zero(32);
  const std::vector<uint8_t> masks(32, 1);
  const float grad = 1;
  const double statistics[2] = {1, 64};
  std::vector<float> on_layers(64);
  std::vector<double> result(2), partials(4);
  float loss = 0;
  const View far{values, kStride, 16, 1, DType::kFloat32};
  const View truth{zero.data(), 0, 16, 1, DType::kFloat32};
  const View mask{masks.data(), 0, 16, 1, DType::kUInt8};
  const auto inputs = [&] {
    emulator::declare(values, kBytes, Memory::kInput);
    emulator::declare(zero.data(), 128, Memory::kInput);
    emulator::declare(masks.data(), 32, Memory::kInput);
    emulator::declare(&grad, 4, Memory::kInput);
    emulator::declare(statistics, 16, Memory::kInput);
  };
  inputs();
  emulator::declare(&loss, 4, Memory::kOutput, 4);
  emulator::declare(result.data(), 16, Memory::kOutput, 8);
  emulator::declare(partials.data(), 32, Memory::kScratch, 8);
  emulator::run([&] {
    run_cuda(LayerLoss{shape, far, truth, mask, {&loss}, result.data(), partials.data()}, {});
  });
  CHECK_NEAR(loss, std::sqrt(5.0), 1e-6);  // half of them 1, half of them 3
  inputs();
  emulator::declare(on_layers.data(), 256, Memory::kOutput, 4);
  emulator::run([&] {
    run_cuda(LayerLossBackward{shape, {&grad}, far, truth, mask, statistics,
                               {on_layers.data(), 32, 16, 1, DType::kFloat32}, {}}, {});
  });
  CHECK_NEAR(on_layers[63], 3.0 / 64, 1e-7);
  munmap(memory, kBytes);
}

// The stand-ins' halves: all of them back and forth, and rounding beside every one.
void check_halves() {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const int exponent = static_cast<int>(bits >> 10);
    const double want = std::ldexp(exponent == 0 ? bits : (bits & 0x3ffu) + 0x400u,
                                   (exponent == 0 ? 1 : exponent) - 25);
    const float value = __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
    CHECK(value == want);
    CHECK(__half_as_ushort(__float2half_rn(-value)) == (bits | 0x8000u));
    const float next = __half2float(__ushort_as_half(static_cast<uint16_t>(bits + 1)));
    const float middle = bits + 1 == 0x7c00 ? 65520.0f : value + (next - value) / 2;
    CHECK(__half_as_ushort(__float2half_rn(middle)) == bits + (bits & 1u));
    CHECK(__half_as_ushort(__float2half_rn(std::nextafter(middle, 0.0f))) == bits);
    CHECK(__half_as_ushort(__float2half_rn(std::nextafter(middle, 1e6f))) == bits + 1);
    if (failures > 20) return;
  }
  CHECK(std::isnan(__half2float(__ushort_as_half(0x7e01))));
  CHECK(__half_as_ushort(__float2half_rn(-std::nanf(""))) == 0x7fff);
  CHECK(__bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(0x3f808000u))) == 0x3f80);
  CHECK(__bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(0x3f818000u))) == 0x3f82);
  CHECK(__bfloat16_as_ushort(__float2bfloat16_rn(3.4e38f)) == 0x7f80);
  CHECK(__bfloat16_as_ushort(__float2bfloat16_rn(-std::nanf(""))) == 0x7fff);
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? static_cast<int>(std::strtol(argv[1], nullptr, 10)) : 24;
  const std::string only = argc > 2 ? argv[2] : "";
  const std::pair<const char*, void (*)(Case&)> ops[] = {
      {"compose_layers", compose_layers},
      {"split_attenuation", split_attenuation},
      {"reconstruction_loss", reconstruction_loss},
      {"layer_loss", layer_loss},
      {"supervisor_loss", supervisor_loss},
      {"synthesize_overlap", synthesize_overlap}};
  const int64_t sizes[][2] = {{1, 1}, {1, 97}, {97, 1}, {9, 7}, {33, 47}, {64, 64}, {45, 46}, {0, 5}};
  const int64_t layers[] = {2, 2, 3, 5};
  check_halves();
  if (only.empty() || only == "layer_loss") {
    try {
      check_long_strides();
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
      ++failures;
    }
  }
  Random random;
  for (int i = 0; i < cases && failures < 20; ++i) {
    const int64_t* size = sizes[i % 8];
    for (const auto& [name, run] : ops) {
      if (!only.empty() && only != name) continue;
      const Shape shape{1 + (i / 3) % 3, layers[i % 4 == 3 ? 3 : i % 3], size[0], size[1]};
      Case c{random, shape, i % 4 == 1, i % 5 == 4};
      run(c);
    }
  }
  return report("emulated");
}
