"""How blsgan is built: the PEP 517 hooks, the toolchain's choices and the extension modules."""
