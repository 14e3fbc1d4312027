"""Every error parasample raises on purpose. A message names what was expected, what was found, what to do."""


class ParasampleError(Exception):
    """Base of all errors raised by parasample."""


class ConfigError(ParasampleError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class UnsupportedPipelineError(ParasampleError):
    """A pipeline, scheduler or model that cannot be sampled in parallel without changing its result."""


class TransportError(ParasampleError, RuntimeError):
    """A rank that could not be reached, or did not answer in time."""


class DivergedError(ParasampleError, RuntimeError):
    """The model returned a value that is not finite, or the iteration left the finite numbers."""
