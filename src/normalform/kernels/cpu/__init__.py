"""Norms compiled for CPUs by Numba: exact, at the speed of the memory.

Each of a few memory patterns has its kernels (``planes``, ``columns``, ``rows``); ``blend`` and
``gradients`` hold what is particular to norms, on arrays of one value a channel, forward and
backward; what they do to values stands in ``vectors``, how those come from memory and go to it in
``memory``. ``layout`` chooses and orders kernels; ``steps`` runs a norm, on PyTorch's threads
(``team``); ``compiled`` makes machine code of Python.
"""
