// Compiled where ONNX Runtime's own header is found: every place and value that onnxruntime.h takes for
// granted is what the header says.

#include <onnxruntime_c_api.h>

#include <cstddef>

#include "onnxruntime.h"

namespace ort = blsgan::runner::ort;

#define SAME_PLACE(ours, theirs) \
  static_assert(ort::ours::slot * sizeof(void*) == offsetof(OrtApi, theirs), #theirs)

SAME_PLACE(GetErrorMessage, GetErrorMessage);
SAME_PLACE(CreateEnv, CreateEnv);
SAME_PLACE(CreateSessionFromArray, CreateSessionFromArray);
SAME_PLACE(Run, Run);
SAME_PLACE(CreateSessionOptions, CreateSessionOptions);
SAME_PLACE(SetSessionLogSeverityLevel, SetSessionLogSeverityLevel);
SAME_PLACE(SetIntraOpNumThreads, SetIntraOpNumThreads);
SAME_PLACE(SetInterOpNumThreads, SetInterOpNumThreads);
SAME_PLACE(SessionGetInputCount, SessionGetInputCount);
SAME_PLACE(SessionGetOutputCount, SessionGetOutputCount);
SAME_PLACE(SessionGetInputTypeInfo, SessionGetInputTypeInfo);
SAME_PLACE(SessionGetOutputTypeInfo, SessionGetOutputTypeInfo);
SAME_PLACE(SessionGetInputName, SessionGetInputName);
SAME_PLACE(SessionGetOutputName, SessionGetOutputName);
SAME_PLACE(CreateTensorWithData, CreateTensorWithDataAsOrtValue);
SAME_PLACE(GetTensorMutableData, GetTensorMutableData);
SAME_PLACE(CastTypeInfoToTensorInfo, CastTypeInfoToTensorInfo);
SAME_PLACE(GetTensorElementType, GetTensorElementType);
SAME_PLACE(GetDimensionsCount, GetDimensionsCount);
SAME_PLACE(GetDimensions, GetDimensions);
SAME_PLACE(GetTensorTypeAndShape, GetTensorTypeAndShape);
SAME_PLACE(CreateCpuMemoryInfo, CreateCpuMemoryInfo);
SAME_PLACE(AllocatorFree, AllocatorFree);
SAME_PLACE(GetAllocatorWithDefaultOptions, GetAllocatorWithDefaultOptions);
SAME_PLACE(ReleaseEnv, ReleaseEnv);
SAME_PLACE(ReleaseStatus, ReleaseStatus);
SAME_PLACE(ReleaseMemoryInfo, ReleaseMemoryInfo);
SAME_PLACE(ReleaseSession, ReleaseSession);
SAME_PLACE(ReleaseValue, ReleaseValue);
SAME_PLACE(ReleaseTypeInfo, ReleaseTypeInfo);
SAME_PLACE(ReleaseTensorInfo, ReleaseTensorTypeAndShapeInfo);
SAME_PLACE(ReleaseSessionOptions, ReleaseSessionOptions);
static_assert(offsetof(OrtApiBase, GetApi) == offsetof(ort::Base, get_api), "GetApi");
static_assert(offsetof(OrtApiBase, GetVersionString) == offsetof(ort::Base, get_version), "version");
static_assert(static_cast<int>(ort::kFatal) == static_cast<int>(ORT_LOGGING_LEVEL_FATAL), "level");
static_assert(static_cast<int>(ort::kArenaAllocator) == static_cast<int>(OrtArenaAllocator), "arena");
static_assert(static_cast<int>(ort::kDefaultMemory) == static_cast<int>(OrtMemTypeDefault), "memory");
static_assert(static_cast<int>(ort::kFloat) == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
              "float");
