"""From weights to an engine that is proven equal: export, precision, gate, build, inspection.

================ ===============================================================================
``export``       weights to one ONNX model of the whole separation, compared with torch
``model``        such a model as a file: read once, hashed, and asked what it is
``samples``      what a network is compared, calibrated and judged on
``parity``       how two networks are compared
``precision``    the same model with float16, bfloat16, int8 or fp8 written into its graph
``gate``         whether such a model may be used
``lowering``     a precision written, judged, and refused where it fails
``build``        an engine and its manifest, by TensorRT or TensorRT-RTX
``trial``        an engine tried where it shall serve: its times, and its answers
``benchmark``    every runtime that can be had, timed and compared
``triton``       a model repository for NVIDIA Triton Inference Server
``inspection``   what is inside weights, an ONNX model or an engine
================ ===============================================================================

Only ``export`` needs torch. What loads and runs an engine is ``blsgan.runtimes``.
"""
