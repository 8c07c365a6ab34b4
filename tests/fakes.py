"""FAKES of TensorRT and of CUDA's bindings: no GPU was there, so what needs one runs against these.

A fake TensorRT carries the real names of its generation, which ``tests/surfaces`` holds as they
were read from NVIDIA's bindings (``tests/runtimes/test_surfaces.py`` compares), so that code which
asks for what a generation lacks fails here as it would there. Its "plan" is the ONNX graph, which
its engine runs by ONNX Runtime on the fake's memory.

The fake of CUDA queues what is enqueued and runs it when somebody synchronises, not before: results
that are read too early, or buffers that are reused too early, are seen.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

MAGIC = b"FAKE PLAN\n"
PRECISION_FLAGS = {"FP16", "BF16", "INT8", "FP8", "INT4", "FP4"}


def surface(name):
    """The names of a real package: ``tests/surfaces/NAME.json``."""
    path = Path(__file__).with_name("surfaces") / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _members(name, text):
    return enum.IntEnum(name, {word: index for index, word in enumerate(text.split())})


def _closed(cls, real):
    """Refuse attributes that the ``real`` class lacks, as bindings do; ``_kept`` are our own."""
    allowed = {*real.split(), *getattr(cls, "_kept", ())}

    def set_known(self, name, value):
        if name not in allowed:
            raise AttributeError(f"{cls.__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)

    cls.__setattr__ = set_known


def fake_tensorrt(generation: str, cuda: FakeCuda | None = None, name: str = "tensorrt"):
    """A module that looks like TensorRT ``generation`` ("10", "11", or "rtx"); ``built`` tells what
    it was asked for."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    real = surface(f"tensorrt-{generation}")  # tensorrt-10, tensorrt-11, tensorrt-rtx
    module.__version__ = real["version"]
    for enumeration in (
        "BuilderFlag",
        "HardwareCompatibilityLevel",
        "MemoryPoolType",
        "NetworkDefinitionCreationFlag",
        "ProfilingVerbosity",
        "TensorIOMode",
    ):
        setattr(module, enumeration, _members(enumeration, real["classes"][enumeration]))
    module.built = SimpleNamespace(count=0, fail=None, refuse_graph=None)

    class ILogger:
        Severity = _members("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    class Network:
        _kept = ("flags", "graph")

        def __init__(self, flags):
            self.flags = flags
            self.graph = None

    class Profile:
        _kept = ("shapes",)

        def __init__(self):
            self.shapes = {}

        def set_shape(self, input, min, opt, max):
            self.shapes[input] = (tuple(min), tuple(opt), tuple(max))

    class TimingCache:
        _kept = ("data",)

        def __init__(self, data):
            self.data = data

        def serialize(self):
            return self.data + b"measured;"

    class Config:
        _kept = ("flags_set", "flags_cleared", "pools", "profiles", "cache", "capabilities")

        def __init__(self):
            self.flags_set, self.flags_cleared = set(), set()
            self.pools, self.profiles, self.cache = {}, [], None
            self.profiling_verbosity = None
            self.hardware_compatibility_level = None
            self.capabilities = {}

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
        _kept = ("logger",)

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
        _kept = ("network",)

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
        _kept = ("engine", "shapes", "addresses")

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
        _kept = ("session", "session_outputs", "names", "contexts")

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
            self.contexts = []

        def get_tensor_name(self, index):
            return self.names[index]

        def get_tensor_mode(self, name):
            modes = module.TensorIOMode
            return modes.INPUT if name in ("image", "masks") else modes.OUTPUT

        def create_execution_context(self, runtime_config=None):
            self.contexts.append(runtime_config)
            return Context(self)

        def create_runtime_config(self):
            return RuntimeConfig()

    class RuntimeCache:
        """Every kernel that a context of it ran is one byte."""

        _kept = ("content",)

        def __init__(self):
            self.content = b""

        def deserialize(self, blob):
            if not bytes(blob).startswith(b"kernels:"):
                return False
            self.content = bytes(blob)
            return True

        def serialize(self):
            return self.content or b"kernels:" + b"k" * module.built.count

    class RuntimeConfig:
        _kept = ("cache",)

        def _set(self, cache):
            self.cache = cache
            return True

    class Runtime:
        _kept = ("logger",)

        deserialised = 0

        def __init__(self, logger):
            self.logger = logger
            self.engine_host_code_allowed = False
            module.built.runtime = self

        def deserialize_cuda_engine(self, plan):
            Runtime.deserialised += 1
            if not plan.startswith(MAGIC):
                self.logger.log(ILogger.Severity.ERROR, "magic tag does not match")
                return None
            module.built.engine = Engine(plan[len(MAGIC) :])
            return module.built.engine

    if generation == "rtx":
        RuntimeConfig.create_runtime_cache = lambda self: RuntimeCache()
        RuntimeConfig.set_runtime_cache = RuntimeConfig._set
        Config.set_compute_capability = lambda self, one, at: self.capabilities.update({at: one})
        module.ComputeCapability = _members(
            "ComputeCapability", real["classes"]["ComputeCapability"]
        )
    module.faked = {
        "Builder": Builder, "IBuilderConfig": Config, "ICudaEngine": Engine,
        "IExecutionContext": Context, "ILogger": ILogger, "INetworkDefinition": Network,
        "IOptimizationProfile": Profile, "IRuntimeCache": RuntimeCache,
        "IRuntimeConfig": RuntimeConfig, "ITimingCache": TimingCache, "OnnxParser": OnnxParser,
        "Runtime": Runtime,
    }  # fmt: skip
    for name, cls in module.faked.items():
        if cls is not ILogger:  # which blsgan derives from
            _closed(cls, real["classes"].get(name, ""))
    for cls in (ILogger, Builder, OnnxParser, Runtime):
        setattr(module, cls.__name__, cls)
    return module


def fake_onnxruntime():
    """A module that looks like onnxruntime-gpu, and whose providers run on the CPU.

    ``asked`` tells what it was asked for; by ``does`` a test says how its GPU misbehaves:
    ``leaves_out`` the provider, ``fails`` with these words when it runs, ``multiplies`` its answers
    or leaves the node types ``to_the_cpu``.
    """
    import onnxruntime as real

    module = ModuleType("onnxruntime")
    module.__version__ = surface("onnxruntime-gpu")["version"]
    module.GraphOptimizationLevel = real.GraphOptimizationLevel
    module.asked = SimpleNamespace(options={}, entries={}, runs=[], severities=[], libraries={})
    module.does = SimpleNamespace(leaves_out=False, fails=None, multiplies=1.0, to_the_cpu=())
    asked, does = module.asked, module.does

    class OrtEpDevice:
        def __init__(self, ep_name, number):
            self.ep_name, self.number = ep_name, number

    module.devices = [OrtEpDevice("CPUExecutionProvider", 0)]

    class SessionOptions:
        _kept = ("given",)

        def __init__(self):
            self.intra_op_num_threads = self.inter_op_num_threads = 0
            self.log_severity_level = 2
            self.use_deterministic_compute = False
            self.graph_optimization_level = real.GraphOptimizationLevel.ORT_ENABLE_ALL
            self.given = []

        def add_session_config_entry(self, key, value):
            asked.entries[key] = value

        def add_provider_for_devices(self, devices, options):
            self.given += [(devices[0].ep_name, dict(options))]
            asked.devices = list(devices)

    class OrtEpAssignedNode:
        def __init__(self, op_type):
            self.op_type = op_type

    class OrtEpAssignedSubgraph:
        def __init__(self, ep_name, types):
            self.ep_name, self.types = ep_name, types

        def get_nodes(self):
            return [OrtEpAssignedNode(op_type) for op_type in self.types]

    class InferenceSession:
        def __init__(self, model, options, providers=None, enable_fallback=1):
            assert enable_fallback == 0, "it would fall back"
            named = [one if isinstance(one, tuple) else (one, {}) for one in providers or ()]
            self.providers = [name for name, _ in (*options.given, *named)]
            self.on_gpu = self.providers[:1] != ["CPUExecutionProvider"]
            if self.on_gpu:
                asked.options = dict((*options.given, *named))
            if does.leaves_out:
                self.providers = ["CPUExecutionProvider"]
            self.session = real.InferenceSession(model, providers=["CPUExecutionProvider"])
            self.get_inputs, self.get_outputs = self.session.get_inputs, self.session.get_outputs

        def get_providers(self):
            return self.providers

        def get_provider_graph_assignment_info(self):
            return [
                OrtEpAssignedSubgraph(self.providers[0], ["Conv", "Relu"]),
                OrtEpAssignedSubgraph("CPUExecutionProvider", does.to_the_cpu),
            ]

        def run(self, output_names, input_feed):
            answers = self.session.run(output_names, input_feed)
            if not self.on_gpu:
                return answers
            if does.fails is not None:
                raise RuntimeError(does.fails)
            asked.runs.append({name: array.shape for name, array in input_feed.items()})
            return [np.float32(does.multiplies) * answer for answer in answers]

    def register_execution_provider_library(name, path):
        if name in asked.libraries:
            raise RuntimeError(f"library {name} is already registered")
        asked.libraries[name] = path

    module.faked = {}
    for cls in (
        InferenceSession, OrtEpAssignedNode, OrtEpAssignedSubgraph, OrtEpDevice, SessionOptions,
    ):  # fmt: skip
        module.faked[cls.__name__] = cls
        setattr(module, cls.__name__, cls)
    _closed(SessionOptions, surface("onnxruntime-gpu")["classes"]["SessionOptions"])
    module.register_execution_provider_library = register_execution_provider_library
    module.get_ep_devices = lambda: module.devices
    module.preload_dlls = lambda directory=None: print("libcudnn.so.9 is not there")
    module.set_default_logger_severity = asked.severities.append
    return module


def fake_rtx_plugin(onnxruntime, gpus=1):
    """The TensorRT-RTX plugin of :func:`fake_onnxruntime`, which finds ``gpus`` GPUs."""
    module = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    module.__version__ = surface("onnxruntime-ep-nv-tensorrt-rtx")["version"]
    module.get_ep_name = lambda: "NvTensorRTRTXExecutionProvider"
    module.get_library_path = lambda: "/fake/libonnxruntime_providers_nv_tensorrt_rtx.so"
    device = onnxruntime.OrtEpDevice
    onnxruntime.devices += [device(module.get_ep_name(), number) for number in range(gpus)]
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
