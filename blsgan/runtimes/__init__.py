"""What runs networks: one session factory for each runtime; threads and privacy are set here alone.

============== =================================================================================
``session``    what every session is, and which runtimes can run here
``device``     where a network runs: one word
``onnx``       ONNX Runtime on the CPU, and on a GPU by
``providers``  CUDA, TensorRT and the TensorRT-RTX plugin of ONNX Runtime
``openvino``   OpenVINO on the CPU
``torch``      PyTorch on the CPU
``engine``     TensorRT and TensorRT-RTX on a GPU, without torch
``manifest``   what is known of an engine, and whether it can run here
``libraries``  TensorRT and TensorRT-RTX behind one name each
``gpu``        the GPU of this machine
``cache``      the user's cache folder
``privacy``    nothing reports to its maker
``onnx_model`` no model reads other files
============== =================================================================================

No GPU was there when this was written: no engine and no provider was executed. Engines are built by
``blsgan.deploy.build``. Which weights a session gets is settled in ``blsgan.tasks``.
"""
