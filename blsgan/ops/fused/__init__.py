"""The torch ops, one file each: arguments checked, fake, derivative, vmap rule.

Import them from ``blsgan.ops``: here a name is the op's module.
"""
