"""Compute kernels, one folder a backend with the same names in each; `reference` is the oracle. See CONTRIBUTING.md.

Installed as `vllm_nb.kernels`. Nothing here imports the rest of the package.
"""
