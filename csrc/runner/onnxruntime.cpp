#include "onnxruntime.h"

#include <dlfcn.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <set>
#include <utility>

#include "failure.h"
#include "network.h"
#include "onnx_model.h"

namespace blsgan::runner {
namespace {

using namespace ort;

using Shape = std::vector<int64_t>;  // -1: any
using Ports = std::map<std::string, Shape>;

int usable_cores() {
  cpu_set_t cores;
  const int count = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
  return std::min(count, 8);
}

// The loaded library. It is never unloaded: its threads and static objects end with the process.
class Library {
 public:
  explicit Library(const std::string& name) {
    // From 1.29 on the library reports to its maker unless this is set when it is loaded.
    setenv("ORT_DISABLE_TELEMETRY", "1", 1);
    const char* variable = std::getenv("BLSGAN_ONNXRUNTIME");
    std::string wanted = !name.empty() ? name : variable != nullptr ? variable : "";
    void* handle = nullptr;
    if (!wanted.empty()) {
      handle = dlopen(wanted.c_str(), RTLD_NOW | RTLD_LOCAL);
    } else {
      for (const char* usual : {"libonnxruntime.so.1", "libonnxruntime.so"}) {
        handle = dlopen(usual, RTLD_NOW | RTLD_LOCAL);
        if (handle != nullptr) break;
      }
    }
    if (handle == nullptr) {
      const char* reason = dlerror();
      throw data_failure(std::string("ONNX Runtime cannot be loaded (") +
                         (reason != nullptr ? reason : "no reason given") +
                         "); name its libonnxruntime.so with --onnxruntime or BLSGAN_ONNXRUNTIME.");
    }
    const auto get_base = reinterpret_cast<GetBase>(dlsym(handle, "OrtGetApiBase"));
    const Base* base = get_base != nullptr ? get_base() : nullptr;
    table_ = base != nullptr ? base->get_api(kApiVersion) : nullptr;
    if (table_ == nullptr) {
      throw data_failure(wanted + " is not ONNX Runtime (it has no OrtGetApiBase, or not version 1 of "
                                  "its interface); name another libonnxruntime.so.");
    }
    version_ = base->get_version();
  }

  template <typename F, typename... Arguments>
  auto call(Arguments... arguments) const {
    return reinterpret_cast<typename F::Pointer>(table_[F::slot])(arguments...);
  }

  // Calls what returns a status, and throws its message where that is not success.
  template <typename F, typename... Arguments>
  void check(Arguments... arguments) const {
    Status* status = call<F>(arguments...);
    if (status == nullptr) return;
    std::string message = call<GetErrorMessage>(static_cast<const Status*>(status));
    call<ReleaseStatus>(status);
    message.resize(std::min<size_t>({message.find('\n'), message.size(), 120}));
    // A damaged model's own names are quoted in it.
    std::replace_if(message.begin(), message.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
    throw std::runtime_error(message);
  }

  const std::string& version() const { return version_; }

 private:
  const AnyFunction* table_ = nullptr;
  std::string version_;
};

// One of ONNX Runtime's objects, released by the function `Release` of its table.
template <typename T, typename Release>
class Owned {
 public:
  explicit Owned(const Library& library) : library_(library) {}
  ~Owned() {
    if (object_ != nullptr) library_.call<Release>(object_);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  T* get() const { return object_; }
  T** out() { return &object_; }

 private:
  const Library& library_;
  T* object_ = nullptr;
};

class OnnxRuntime final : public Network {
 public:
  OnnxRuntime(File weights, const std::string& library, int threads)
      : weights_(std::move(weights)),
        library_(library),
        env_(library_),
        session_(library_),
        memory_(library_) {
    refuse_external_data(weights_);
    physics_ = physics_of(weights_);
    Owned<SessionOptions, ReleaseSessionOptions> options(library_);
    try {
      library_.check<CreateEnv>(kFatal, "blsgan-infer", env_.out());
      library_.check<CreateSessionOptions>(options.out());
      library_.check<SetIntraOpNumThreads>(options.get(), threads > 0 ? threads : usable_cores());
      library_.check<SetInterOpNumThreads>(options.get(), 1);
      library_.check<SetSessionLogSeverityLevel>(options.get(), static_cast<int>(kFatal));
      library_.check<CreateSessionFromArray>(
          static_cast<const Env*>(env_.get()), static_cast<const void*>(weights_.data.data()),
          weights_.data.size(), static_cast<const SessionOptions*>(options.get()), session_.out());
      library_.check<CreateCpuMemoryInfo>(kArenaAllocator, kDefaultMemory, memory_.out());
      check_signature(ports<SessionGetInputCount, SessionGetInputName, SessionGetInputTypeInfo>(),
                      ports<SessionGetOutputCount, SessionGetOutputName, SessionGetOutputTypeInfo>());
    } catch (const Failure&) {
      throw;
    } catch (const std::runtime_error& error) {
      throw data_failure(weights_.path + " is not a network that can be run (" + error.what() +
                         "); give another one.");
    }
  }

  Prediction run(const NetworkInput& input) override {
    try {
      return checked(predict(input), input, weights_.path);
    } catch (const Failure&) {
      throw;
    } catch (const std::runtime_error& error) {
      throw data_failure(text("%s fails on a crop of [1, 2, %lld, %lld] (%s); use other weights.",
                              weights_.path.c_str(), static_cast<long long>(input.height),
                              static_cast<long long>(input.width), error.what()));
    }
  }

  std::string runtime() const override { return "ONNX Runtime " + library_.version(); }

 private:
  using OwnedValue = Owned<Value, ReleaseValue>;

  void make_tensor(const std::vector<float>& values, const Shape& shape, OwnedValue& value) const {
    // The interface knows no read-only tensors; inputs are not written to.
    library_.check<CreateTensorWithData>(
        static_cast<const MemoryInfo*>(memory_.get()),
        static_cast<void*>(const_cast<float*>(values.data())), values.size() * sizeof(float),
        shape.data(), shape.size(), kFloat, value.out());
  }

  Prediction predict(const NetworkInput& input) const {
    OwnedValue image(library_), masks(library_), logits(library_), soft_tissue(library_);
    make_tensor(input.image, {1, 1, input.height, input.width}, image);
    make_tensor(input.masks, {1, 2, input.height, input.width}, masks);
    const char* const input_names[] = {"image", "masks"};
    const char* const output_names[] = {"share_logits", "soft_tissue"};
    const Value* const values[] = {image.get(), masks.get()};
    Value* results[] = {nullptr, nullptr};
    library_.check<Run>(session_.get(), static_cast<const RunOptions*>(nullptr),
                        static_cast<const char* const*>(input_names),
                        static_cast<const Value* const*>(values), size_t{2},
                        static_cast<const char* const*>(output_names), size_t{2},
                        static_cast<Value**>(results));
    *logits.out() = results[0];
    *soft_tissue.out() = results[1];
    Prediction prediction;
    prediction.share_logits = floats(logits.get(), {1, 2, input.height, input.width});
    prediction.soft_tissue = floats(soft_tissue.get(), {1, 1, input.height, input.width});
    prediction.physics = physics_;
    return prediction;
  }

  std::vector<float> floats(Value* value, const Shape& wanted) const {
    Owned<TensorInfo, ReleaseTensorInfo> info(library_);
    library_.check<GetTensorTypeAndShape>(static_cast<const Value*>(value), info.out());
    ElementType type = kUndefined;
    library_.check<GetTensorElementType>(static_cast<const TensorInfo*>(info.get()), &type);
    if (type != kFloat || shape_of(info.get()) != wanted) {
      throw data_failure(weights_.path +
                         " is of another architecture: it gave another shape or type than float32 "
                         "[1,2,H,W] and [1,1,H,W]; use other weights.");
    }
    void* data = nullptr;
    library_.check<GetTensorMutableData>(value, &data);
    size_t count = 1;
    for (int64_t size : wanted) count *= static_cast<size_t>(size);
    const auto* first = static_cast<const float*>(data);
    return {first, first + count};
  }

  Shape shape_of(const TensorInfo* info) const {
    size_t count = 0;
    library_.check<GetDimensionsCount>(info, &count);
    Shape shape(count);
    library_.check<GetDimensions>(info, shape.data(), count);
    return shape;
  }

  template <typename Count, typename Name, typename Type>
  Ports ports() const {
    const Session* session = session_.get();
    Allocator* allocator = nullptr;
    library_.check<GetAllocatorWithDefaultOptions>(&allocator);
    size_t count = 0;
    library_.check<Count>(session, &count);
    Ports result;
    for (size_t i = 0; i < count; ++i) {
      char* name = nullptr;
      library_.check<Name>(session, i, allocator, &name);
      const std::string key = name;
      library_.check<AllocatorFree>(allocator, static_cast<void*>(name));
      Owned<TypeInfo, ReleaseTypeInfo> type(library_);
      library_.check<Type>(session, i, type.out());
      const TensorInfo* tensor = nullptr;  // belongs to `type`
      library_.check<CastTypeInfoToTensorInfo>(static_cast<const TypeInfo*>(type.get()), &tensor);
      result[key] = tensor != nullptr ? shape_of(tensor) : Shape{};
    }
    return result;
  }

  static std::string listed(const Ports& ports) {
    std::string all;
    for (const auto& [name, shape] : ports) {
      all += (all.empty() ? "" : ", ") + name + " [";
      for (size_t i = 0; i < shape.size(); ++i) {
        all += (i > 0 ? "," : "") + (shape[i] < 0 ? "*" : std::to_string(shape[i]));
      }
      all += ']';
    }
    return all;
  }

  // Refuses a network of another architecture before it computes what only looks like layers.
  void check_signature(const Ports& inputs, const Ports& outputs) const {
    const auto has = [](const Ports& ports, const char* name, int64_t channels) {
      const auto port = ports.find(name);
      return port != ports.end() && port->second.size() == 4 && port->second[1] == channels;
    };
    const bool fits = inputs.size() == 2 && has(inputs, "image", 1) && has(inputs, "masks", 2) &&
                      inputs.at("image")[2] < 0 && inputs.at("image")[3] < 0 &&
                      outputs.count("share_logits") == 1 && outputs.count("soft_tissue") == 1;
    if (fits) return;
    throw data_failure(weights_.path + " is of another architecture: it maps " + listed(inputs) +
                       " to " + listed(outputs) +
                       ", not image [B,1,H,W], masks [B,2,H,W] to share_logits, soft_tissue; give "
                       "weights of a separation network.");
  }

  File weights_;
  Physics physics_;
  Library library_;
  Owned<Env, ReleaseEnv> env_;
  Owned<Session, ReleaseSession> session_;
  Owned<MemoryInfo, ReleaseMemoryInfo> memory_;
};

}  // namespace

std::unique_ptr<Network> load_onnxruntime(File weights, const std::string& library, int threads) {
  return std::make_unique<OnnxRuntime>(std::move(weights), library, threads);
}

Prediction checked(Prediction prediction, const NetworkInput& input, const std::string& weights) {
  if (prediction.share_logits.size() != input.masks.size() ||
      prediction.soft_tissue.size() != input.image.size()) {
    throw data_failure(weights + " is of another architecture: it gave another shape than the masks "
                                 "have; use other weights.");
  }
  const auto finite = [](const std::vector<float>& values) {
    return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
  };
  if (!finite(prediction.share_logits) || !finite(prediction.soft_tissue)) {
    throw data_failure(weights + " gave NaN or infinite values; use other weights.");
  }
  return prediction;
}

}  // namespace blsgan::runner
