"""What runs networks: one session factory for each runtime; threads and privacy are set here alone.

=============== ================================================================================
``session``     what every session is, and which runtimes can run here
``onnx``        ONNX Runtime
``onnx_device`` ONNX Runtime on a GPU
``openvino``    OpenVINO on the CPU
``torch``       PyTorch on the CPU
``engine``      TensorRT and TensorRT-RTX on a GPU, without torch
``manifest``    what is known of an engine, and whether it can run here
``libraries``   TensorRT and TensorRT-RTX behind one name each
``gpu``         the GPU of this machine
``privacy``     nothing reports to its maker
``onnx_model``  no model reads other files
=============== ================================================================================

No engine was executed when this was written: there was no GPU. Engines are built by
``blsgan.deploy.build``. Which weights a session gets is settled in ``blsgan.tasks``.
"""
