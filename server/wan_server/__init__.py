"""The front end: HTTP, queue, files, webhooks and the command line. Knows no tensors; imports no torch."""

__version__ = "0.1.0"
