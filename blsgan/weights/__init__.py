"""The default weights, ``lite``, as safetensors and ONNX, with their card (lite.json, lite.md)."""
