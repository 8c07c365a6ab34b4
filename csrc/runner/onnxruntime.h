// The part of ONNX Runtime's C interface that the runner calls, declared by position.
//
// The interface is a table of function pointers that only ever grows: version 1 is 102 pointers whose
// places are frozen. So one runner works with every libonnxruntime.so, the one inside the wheel of PyPI
// included, which comes without headers. Where onnxruntime_c_api.h is found at build time,
// onnxruntime_check.cpp holds every place below against it.

#pragma once

#include <cstddef>
#include <cstdint>

namespace blsgan::runner::ort {

constexpr uint32_t kApiVersion = 1;

// Opaque.
struct Status;
struct Env;
struct Session;
struct SessionOptions;
struct RunOptions;
struct MemoryInfo;
struct Value;
struct TypeInfo;
struct TensorInfo;
struct Allocator;

using AnyFunction = void (*)();

struct Base {
  const AnyFunction* (*get_api)(uint32_t version);
  const char* (*get_version)();
};
using GetBase = const Base* (*)();

enum LoggingLevel { kFatal = 4 };
enum AllocatorType { kArenaAllocator = 1 };
enum MemoryType { kDefaultMemory = 0 };
enum ElementType { kUndefined = 0, kFloat = 1 };

// A function of the table: its place, and the type to call it by.
template <size_t Slot, typename Signature>
struct Function {
  static constexpr size_t slot = Slot;
  using Pointer = Signature*;
};

using GetErrorMessage = Function<2, const char*(const Status*)>;
using CreateEnv = Function<3, Status*(LoggingLevel, const char* id, Env**)>;
using CreateSessionFromArray =
    Function<8, Status*(const Env*, const void* model, size_t bytes, const SessionOptions*, Session**)>;
using Run = Function<9, Status*(Session*, const RunOptions*, const char* const* inputs,
                                const Value* const* values, size_t input_count,
                                const char* const* outputs, size_t output_count, Value** results)>;
using CreateSessionOptions = Function<10, Status*(SessionOptions**)>;
using SetSessionLogSeverityLevel = Function<22, Status*(SessionOptions*, int level)>;
using SetIntraOpNumThreads = Function<24, Status*(SessionOptions*, int count)>;
using SetInterOpNumThreads = Function<25, Status*(SessionOptions*, int count)>;
using SessionGetInputCount = Function<30, Status*(const Session*, size_t*)>;
using SessionGetOutputCount = Function<31, Status*(const Session*, size_t*)>;
using SessionGetInputTypeInfo = Function<33, Status*(const Session*, size_t, TypeInfo**)>;
using SessionGetOutputTypeInfo = Function<34, Status*(const Session*, size_t, TypeInfo**)>;
using SessionGetInputName = Function<36, Status*(const Session*, size_t, Allocator*, char**)>;
using SessionGetOutputName = Function<37, Status*(const Session*, size_t, Allocator*, char**)>;
using CreateTensorWithData =
    Function<49, Status*(const MemoryInfo*, void* data, size_t bytes, const int64_t* shape,
                         size_t dimensions, ElementType, Value**)>;
using GetTensorMutableData = Function<51, Status*(Value*, void**)>;
using CastTypeInfoToTensorInfo = Function<55, Status*(const TypeInfo*, const TensorInfo**)>;
using GetTensorElementType = Function<60, Status*(const TensorInfo*, ElementType*)>;
using GetDimensionsCount = Function<61, Status*(const TensorInfo*, size_t*)>;
using GetDimensions = Function<62, Status*(const TensorInfo*, int64_t*, size_t)>;
using GetTensorTypeAndShape = Function<65, Status*(const Value*, TensorInfo**)>;
using CreateCpuMemoryInfo = Function<69, Status*(AllocatorType, MemoryType, MemoryInfo**)>;
using AllocatorFree = Function<76, Status*(Allocator*, void*)>;
using GetAllocatorWithDefaultOptions = Function<78, Status*(Allocator**)>;
using ReleaseEnv = Function<92, void(Env*)>;
using ReleaseStatus = Function<93, void(Status*)>;
using ReleaseMemoryInfo = Function<94, void(MemoryInfo*)>;
using ReleaseSession = Function<95, void(Session*)>;
using ReleaseValue = Function<96, void(Value*)>;
using ReleaseTypeInfo = Function<98, void(TypeInfo*)>;
using ReleaseTensorInfo = Function<99, void(TensorInfo*)>;
using ReleaseSessionOptions = Function<100, void(SessionOptions*)>;

}  // namespace blsgan::runner::ort
