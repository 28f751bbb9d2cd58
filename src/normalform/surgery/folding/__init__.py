"""Norms into the convolutions and linear layers around them: see :func:`fold`."""
