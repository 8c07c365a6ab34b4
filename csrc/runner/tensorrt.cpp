#include "network.h"

#include "failure.h"

#if defined(BLSGAN_TENSORRT)
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "onnx_model.h"
#include "sha256.h"

// Written against TensorRT 10 and 11; compiled only where their headers are, which was nowhere yet.

namespace blsgan::runner {
namespace {

using nlohmann::json;

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR || !last_.empty()) return;
    try {
      last_ = message;
    } catch (...) {  // the sentence then says less
    }
  }
  std::string last() const { return last_.empty() ? "no reason given" : last_.substr(0, 160); }

 private:
  std::string last_;
};

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw data_failure(std::string("the GPU fails at ") + what + " (" + cudaGetErrorString(error) +
                       ").");
  }
}

// Memory on the GPU, grown when more is wanted.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  void* reserve(size_t bytes) {
    if (bytes > size_) {
      cudaFree(data_);
      data_ = nullptr;
      size_ = 0;
      check(cudaMalloc(&data_, bytes), "reserving memory");
      size_ = bytes;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

struct Gpu {
  std::string name, capability;
};

Gpu this_gpu() {
  int device = 0;
  cudaDeviceProp properties{};
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
    throw data_failure("this machine has no usable NVIDIA GPU, which a TensorRT engine needs; give an "
                       ".onnx file.");
  }
  return {properties.name,
          std::to_string(properties.major) + "." + std::to_string(properties.minor)};
}

// "10.3.0.26" -> "10.3.0": Python and C++ disagree about the build number.
std::string three_numbers(const std::string& version) {
  size_t at = 0;
  for (int dots = 0; at < version.size() && (version[at] != '.' || ++dots < 3); ++at) {
  }
  return version.substr(0, at);
}

std::string library_version() {
  const int version = getInferLibVersion();
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

// Everything that decides whether the plan can run is held against this machine first: a runtime that
// is given another's plan may crash instead of refusing it.
Physics check_manifest(const File& plan) {
  const std::string path = plan.path + ".json";
  const File file = read_file(path, "manifest");
  const json manifest = json::parse(file.data.begin(), file.data.end(), nullptr, false);
  const auto field = [&](const char* name) -> json {
    const bool there = manifest.is_object() && manifest.contains(name);
    return there ? manifest[name] : json();
  };
  const auto words = [&](const char* name) {
    const json value = field(name);
    return value.is_string() ? value.get<std::string>() : "nothing";
  };
  if (!manifest.is_object() || !field("schema").is_number_integer() || field("schema") != 1) {
    throw data_failure(path + " is not a manifest of this version of blsgan; build the engine again.");
  }
  if (words("sha256") != sha256(plan.data)) {
    throw data_failure(plan.path +
                       " is not the engine its manifest describes (another SHA-256); copy both again, "
                       "or build it again.");
  }
  const std::string cannot = plan.path + " cannot run here: ";
  if (words("backend") != "tensorrt") {
    throw data_failure(cannot + "it was built by " + words("backend") +
                       ", and blsgan-infer runs engines of tensorrt; build it with --backend tensorrt.");
  }
  if (three_numbers(words("backend_version")) != library_version()) {
    throw data_failure(cannot + "it was built by TensorRT " + words("backend_version") +
                       ", and here is " + library_version() + "; build it here again.");
  }
  const Gpu gpu = this_gpu();
  const json capabilities = field("compute_capabilities");
  if (!capabilities.is_array() ||
      std::find(capabilities.begin(), capabilities.end(), json(gpu.capability)) ==
          capabilities.end()) {
    throw data_failure(cannot + "it was built for compute capability " + capabilities.dump() +
                       ", and " + gpu.name + " has " + gpu.capability + "; build it for that.");
  }
  if (words("gpu") != gpu.name) {
    throw data_failure(cannot + "it was built on " + words("gpu") + ", and here is " + gpu.name +
                       "; build it here again.");
  }
  std::map<std::string, std::string> described;
  const json model = field("model");
  for (const char* name : {"size_multiple", "law", "reach_px"}) {
    if (model.is_object() && model.contains(name)) described[name] = model[name].dump();
  }
  return physics_of(described, path);
}

class TensorRt final : public Network {
 public:
  explicit TensorRt(const File& plan) : path_(plan.path) {
    physics_ = check_manifest(plan);
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (runtime_) {
      engine_.reset(runtime_->deserializeCudaEngine(plan.data.data(), plan.data.size()));
    }
    if (engine_) context_.reset(engine_->createExecutionContext());
    if (!context_) {
      throw data_failure(path_ + " cannot be loaded by TensorRT (" + logger_.last() +
                         "); build it here again.");
    }
    for (const char* name : {"image", "masks", "share_logits", "soft_tissue"}) {
      if (engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kNONE ||
          engine_->getTensorDataType(name) != nvinfer1::DataType::kFLOAT) {
        throw data_failure(path_ + " is of another architecture: it has no float32 " + name +
                           "; build it from what `blsgan export` wrote.");
      }
    }
    check(cudaStreamCreate(&stream_), "making a stream");
  }
  ~TensorRt() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  Prediction run(const NetworkInput& input) override {
    give("image", 1, input.height, input.width, input.image);
    give("masks", 2, input.height, input.width, input.masks);
    // The other outputs of the whole separation are computed as well and stay on the GPU.
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      if (engine_->getTensorIOMode(name) != nvinfer1::TensorIOMode::kOUTPUT) continue;
      context_->setTensorAddress(name, buffer(name).reserve(count(name) * sizeof(float)));
    }
    if (!context_->enqueueV3(stream_)) {
      throw data_failure(text("%s fails on a crop of [1, 2, %lld, %lld] (%s); use other weights.",
                              path_.c_str(), static_cast<long long>(input.height),
                              static_cast<long long>(input.width), logger_.last().c_str()));
    }
    Prediction prediction;
    prediction.share_logits.resize(count("share_logits"));
    fetch("share_logits", prediction.share_logits.data(), prediction.share_logits.size());
    prediction.soft_tissue.resize(count("soft_tissue"));
    fetch("soft_tissue", prediction.soft_tissue.data(), prediction.soft_tissue.size());
    prediction.physics = physics_;
    check(cudaStreamSynchronize(stream_), "running the engine");
    return checked(std::move(prediction), input, path_);
  }

  std::string runtime() const override { return "TensorRT " + library_version(); }

 private:
  void give(const char* name, int64_t channels, int64_t height, int64_t width,
            const std::vector<float>& values) {
    nvinfer1::Dims shape{};
    shape.nbDims = 4;
    const int64_t sizes[] = {1, channels, height, width};
    std::copy(std::begin(sizes), std::end(sizes), shape.d);
    if (!context_->setInputShape(name, shape)) {
      throw data_failure(text("%s was not built for a crop of %lld x %lld pixels; build it with a wider "
                              "--height and --width.",
                              path_.c_str(), static_cast<long long>(height),
                              static_cast<long long>(width)));
    }
    const size_t bytes = values.size() * sizeof(float);
    void* target = buffer(name).reserve(bytes);
    context_->setTensorAddress(name, target);
    check(cudaMemcpyAsync(target, values.data(), bytes, cudaMemcpyHostToDevice, stream_),
          "copying to it");
  }

  void fetch(const char* name, float* target, size_t floats) {
    if (count(name) < floats) {
      throw data_failure(path_ + " is of another architecture: it gave too few values of " + name +
                         "; use other weights.");
    }
    check(cudaMemcpyAsync(target, buffer(name).reserve(0), floats * sizeof(float),
                          cudaMemcpyDeviceToHost, stream_),
          "copying from it");
  }

  size_t count(const char* name) const {
    const nvinfer1::Dims shape = context_->getTensorShape(name);
    int64_t product = 1;
    for (int32_t i = 0; i < shape.nbDims; ++i) product *= std::max<int64_t>(shape.d[i], 0);
    return static_cast<size_t>(product);
  }

  DeviceBuffer& buffer(const std::string& name) { return buffers_[name]; }

  // Destroyed from the last to the first: the context before its engine before its runtime.
  std::string path_;
  Physics physics_;
  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::map<std::string, DeviceBuffer> buffers_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace

bool has_tensorrt() { return true; }

std::unique_ptr<Network> load_tensorrt(const File& plan) {
  return std::make_unique<TensorRt>(plan);
}

}  // namespace blsgan::runner

#else

namespace blsgan::runner {

bool has_tensorrt() { return false; }

std::unique_ptr<Network> load_tensorrt(const File& plan) {
  throw data_failure(plan.path +
                     " is a TensorRT engine, and this blsgan-infer was built without TensorRT; give an "
                     ".onnx file, or build again where TensorRT's headers are.");
}

}  // namespace blsgan::runner
#endif
