"""The weights that ship, as ONNX, each with its card (NAME.json, NAME.md)."""
