"""TensorRT engines: the manifest beside a plan, the machine it fits, and running it without torch.

============= ==================================================================================
``libraries`` TensorRT and TensorRT-RTX behind one name each
``gpu``       the GPU of this machine
``manifest``  what is known of an engine, and whether it can run here
``runtime``   an engine that runs
============= ==================================================================================

No engine was executed when this was written: there was no GPU. Engines are built by
``blsgan.deploy.build``.
"""
