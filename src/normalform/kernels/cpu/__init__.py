"""Norms compiled for CPUs by Numba: exact, at the speed of the memory.

Each of a few memory patterns has its kernels (``planes``, ``columns``, ``rows``); ``blend`` and
``gradients`` hold what is particular to norms, on arrays of one value a channel, forward and
backward; ``layout`` chooses and orders them;
``steps`` runs a norm, on PyTorch's threads (``team``); ``compiled`` makes machine code of Python.
"""
