"""From weights to an engine that is proven equal: export, precision, gate, build, inspection.

================ ===============================================================================
``export``       weights to one ONNX model of the whole separation, compared with torch
``samples``      what a network is compared, calibrated and judged on
``parity``       how two networks are compared
``precision``    the same model with float16, bfloat16, int8 or fp8 written into its graph
``gate``         whether such a model may be used
``build``        an engine and its manifest, by TensorRT or TensorRT-RTX
``inspection``   what is inside weights, an ONNX model or an engine
================ ===============================================================================

Only ``export`` needs torch. What loads and runs an engine is ``blsgan.engines``.
"""
