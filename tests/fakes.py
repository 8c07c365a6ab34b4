"""FAKES of TensorRT and of CUDA's bindings: no GPU was there, so what needs one runs against these.

A fake TensorRT carries the real names of its generation: the enum members and methods of 10.13 (its
published type stubs) and of 11 (NVIDIA's migration guide: precision flags, EXPLICIT_BATCH and the
calibrator are gone), so that code which asks for what a generation lacks fails here as it would
there. Its "plan" is the ONNX graph, which its engine runs by ONNX Runtime on the fake's memory.

The fake of CUDA queues what is enqueued and runs it when somebody synchronises, not before: results
that are read too early, or buffers that are reused too early, are seen.
"""

from __future__ import annotations

import ctypes
import enum
import math
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np

MAGIC = b"FAKE PLAN\n"

# fmt: off
_KEPT_FLAGS = [
    "DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "EDITABLE_TIMING_CACHE", "TF32",
    "SPARSE_WEIGHTS", "SAFETY_SCOPE", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME",
    "ERROR_ON_TIMING_CACHE_MISS", "DISABLE_COMPILATION_CACHE", "STRIP_PLAN", "REFIT_IDENTICAL",
    "WEIGHT_STREAMING", "REFIT_INDIVIDUAL", "STRICT_NANS", "MONITOR_MEMORY",
    "DISTRIBUTIVE_INDEPENDENCE",
]
# fmt: on
PRECISION_FLAGS = {"FP16", "BF16", "INT8", "FP8", "INT4", "FP4"}
BUILDER_FLAGS = {
    "10": [
        *_KEPT_FLAGS,
        *sorted(PRECISION_FLAGS),
        *("DIRECT_IO", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"),
        *("REJECT_EMPTY_ALGORITHMS", "WEIGHTLESS"),
    ],
    "11": _KEPT_FLAGS,
}
CREATION_FLAGS = {
    "10": "EXPLICIT_BATCH STRONGLY_TYPED PREFER_JIT_PYTHON_PLUGINS PREFER_AOT_PYTHON_PLUGINS",
    "11": "STRONGLY_TYPED PREFER_JIT_PYTHON_PLUGINS PREFER_AOT_PYTHON_PLUGINS",
}
_POOLS = (
    "WORKSPACE DLA_MANAGED_SRAM DLA_LOCAL_DRAM DLA_GLOBAL_DRAM TACTIC_DRAM TACTIC_SHARED_MEMORY"
)


def _members(name, text):
    words = text.split() if isinstance(text, str) else text
    return enum.IntEnum(name, {word: index for index, word in enumerate(words)})


def fake_tensorrt(generation: str, cuda: FakeCuda | None = None, name: str = "tensorrt"):
    """A module that looks like TensorRT ``generation`` ("10" or "11"); ``built`` tells what it was
    asked for."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__version__ = {"10": "10.13.3", "11": "11.0.0"}[generation]
    module.BuilderFlag = _members("BuilderFlag", BUILDER_FLAGS[generation])
    module.NetworkDefinitionCreationFlag = _members(
        "NetworkDefinitionCreationFlag", CREATION_FLAGS[generation]
    )
    module.MemoryPoolType = _members("MemoryPoolType", _POOLS)
    module.ProfilingVerbosity = _members("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
    module.TensorIOMode = _members("TensorIOMode", "NONE INPUT OUTPUT")
    module.built = SimpleNamespace(count=0, fail=None, refuse_graph=None)

    class ILogger:
        Severity = _members("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    class Network:
        def __init__(self, flags):
            self.flags = flags
            self.graph = None

    class Profile:
        def __init__(self):
            self.shapes = {}

        def set_shape(self, input, min, opt, max):
            self.shapes[input] = (tuple(min), tuple(opt), tuple(max))

    class TimingCache:
        def __init__(self, data):
            self.data = data

        def serialize(self):
            return self.data + b"measured;"

    class Config:
        def __init__(self):
            self.flags_set, self.flags_cleared = set(), set()
            self.pools, self.profiles, self.cache = {}, [], None
            self.profiling_verbosity = None

        def set_flag(self, flag):
            self.flags_set.add(flag.name)

        def clear_flag(self, flag):
            self.flags_cleared.add(flag.name)

        def set_memory_pool_limit(self, pool, size):
            self.pools[pool.name] = size

        def add_optimization_profile(self, profile):
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, data):
            return None if data.startswith(b"of another GPU") else TimingCache(bytes(data))

        def set_timing_cache(self, cache, ignore_mismatch):
            self.cache = cache
            return True

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags=0):
            return Network(flags)

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            built = module.built
            built.count += 1
            built.network, built.config = network, config
            if built.fail is not None:
                self.logger.log(ILogger.Severity.ERROR, built.fail)
                return None
            return MAGIC + network.graph

    class OnnxParser:
        def __init__(self, network, logger):
            self.network = network
            self.num_errors = 0

        def parse(self, data):
            if module.built.refuse_graph is not None:
                self.num_errors = 1
                return False
            self.network.graph = bytes(data)
            return True

        def get_error(self, index):
            return SimpleNamespace(desc=lambda: module.built.refuse_graph)

    class Context:
        def __init__(self, engine):
            self.engine, self.shapes, self.addresses = engine, {}, {}

        def set_input_shape(self, name, shape):
            self.shapes[name] = tuple(shape)
            return True

        def set_tensor_address(self, name, pointer):
            assert isinstance(pointer, int)
            self.addresses[name] = pointer
            return True

        def get_tensor_shape(self, name):
            batch, _, height, width = self.shapes["masks"]
            channels = {"layers": 2, "reconstruction": 1, "share_logits": 2, "soft_tissue": 1}
            return (batch, channels[name], height, width)

        def execute_async_v3(self, stream):
            shapes, addresses = dict(self.shapes), dict(self.addresses)
            outputs = {name: self.get_tensor_shape(name) for name in self.engine.session_outputs}

            def compute():
                feeds = {n: cuda.array(addresses[n], shapes[n], "device").copy() for n in shapes}
                answers = self.engine.session.run(list(outputs), feeds)
                for (name, shape), answer in zip(outputs.items(), answers, strict=True):
                    cuda.array(addresses[name], shape, "device")[...] = answer

            cuda.enqueue(stream, compute)
            return True

    class Engine:
        def __init__(self, graph):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
            self.session_outputs = [port.name for port in self.session.get_outputs()]
            self.names = ["image", "masks", *self.session_outputs]
            self.num_io_tensors = len(self.names)

        def get_tensor_name(self, index):
            return self.names[index]

        def get_tensor_mode(self, name):
            modes = module.TensorIOMode
            return modes.INPUT if name in ("image", "masks") else modes.OUTPUT

        def create_execution_context(self):
            return Context(self)

    class Runtime:
        deserialised = 0

        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            Runtime.deserialised += 1
            if not plan.startswith(MAGIC):
                self.logger.log(ILogger.Severity.ERROR, "magic tag does not match")
                return None
            return Engine(plan[len(MAGIC) :])

    for cls in (ILogger, Builder, OnnxParser, Runtime):
        setattr(module, cls.__name__, cls)
    return module


class FakeCuda:
    """``cuda.bindings.runtime`` on host memory; ``device`` and ``host`` pointers are kept apart."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2

    def __init__(self, name="Fake GPU", major=8, minor=6, count=1):
        self.properties = SimpleNamespace(name=name.encode() + b"\0", major=major, minor=minor)
        self.count = count
        self.memory = {"device": {}, "host": {}}
        self.queues, self.capturing, self.events, self.graphs = {}, {}, {}, {}
        self.launches = 0
        self._handle = 1000

    def array(self, pointer, shape, where):
        assert pointer in self.memory[where], f"{pointer:#x} is no {where} memory"
        count = math.prod(shape)
        assert 4 * count <= len(self.memory[where][pointer]), "past the end of the memory"
        buffer = (ctypes.c_float * count).from_address(pointer)
        return np.frombuffer(buffer, np.float32, count).reshape(shape)

    def allocate(self, size, where):
        # What was never written must not look like a result.
        buffer = (ctypes.c_ubyte * size).from_buffer(bytearray(b"\xff" * size))
        pointer = ctypes.addressof(buffer)
        self.memory[where][pointer] = buffer
        return 0, pointer

    def enqueue(self, stream, work):
        self.capturing.get(stream, self.queues[stream]).append(work)

    def drain(self, stream):
        while self.queues[stream]:
            self.queues[stream].pop(0)()

    def new(self, table, value):
        self._handle += 1
        table[self._handle] = value
        return 0, self._handle

    def cudaGetErrorString(self, status):
        return 0, b"fake error"

    def cudaGetDeviceCount(self):
        return 0, self.count

    def cudaGetDeviceProperties(self, device):
        return 0, self.properties

    def cudaSetDevice(self, device):
        return (0,)

    def cudaMalloc(self, size):
        return self.allocate(size, "device")

    def cudaMallocHost(self, size):
        return self.allocate(size, "host")

    def cudaFree(self, pointer):
        del self.memory["device"][pointer]
        return (0,)

    def cudaFreeHost(self, pointer):
        del self.memory["host"][pointer]
        return (0,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        to, of = ("device", "host") if kind == 1 else ("host", "device")
        assert target in self.memory[to]
        assert source in self.memory[of]
        self.enqueue(stream, lambda: ctypes.memmove(target, source, size))
        return (0,)

    def cudaStreamCreateWithFlags(self, flags):
        return self.new(self.queues, [])

    def cudaStreamDestroy(self, stream):
        del self.queues[stream]
        return (0,)

    def cudaStreamSynchronize(self, stream):
        self.drain(stream)
        return (0,)

    def cudaDeviceSynchronize(self):
        for stream in self.queues:
            self.drain(stream)
        return (0,)

    def cudaEventCreateWithFlags(self, flags):
        return self.new(self.events, None)

    def cudaEventDestroy(self, event):
        del self.events[event]
        return (0,)

    def cudaEventRecord(self, event, stream):
        self.events[event] = stream
        return (0,)

    def cudaEventSynchronize(self, event):
        self.drain(self.events[event])
        return (0,)

    def cudaStreamWaitEvent(self, stream, event, flags):
        other = self.events[event]
        self.enqueue(stream, lambda: self.drain(other))
        return (0,)

    def cudaStreamBeginCapture(self, stream, mode):
        assert stream not in self.capturing
        self.capturing[stream] = []
        return (0,)

    def cudaStreamEndCapture(self, stream):
        return self.new(self.graphs, self.capturing.pop(stream))

    def cudaGraphInstantiate(self, graph, flags):
        return self.new(self.graphs, list(self.graphs[graph]))

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return (0,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        work = list(self.graphs[graph])
        self.enqueue(stream, lambda: [step() for step in work])
        return (0,)
