"""Errors a user can act on: each text says what is wrong, where, and what to do next."""


class PathsumError(Exception):
    """Base of all errors raised on purpose; the command line prints it on one line and exits with 2."""


class NoJoinsError(PathsumError):
    """The model has no residual joins, so there is nothing to put λ on."""


class NoUnitsError(PathsumError):
    """The model has no nonlinear units of the kind asked for, so there is nothing to linearize."""


class ModeError(PathsumError):
    """The model is in a state the mathematics does not cover (train-mode BatchNorm, dropout, compiled)."""


class ControlFlowError(PathsumError):
    """A call did not follow the sequence of operations the anatomy was taken from."""


class LambdaError(PathsumError, ValueError):
    """λ or α has the wrong shape, type or value."""


class RuleError(PathsumError, ValueError):
    """A scaling rule that cannot be parsed."""


class MissingRuleError(PathsumError, NotImplementedError):
    """A function was called on a series and no rule says what it does."""


class ProbeError(PathsumError):
    """The rewritten model failed its numeric check against the original."""


class DataError(PathsumError, ValueError):
    """Data that cannot be read, or that does not fit the model."""


class CheckpointError(PathsumError):
    """A checkpoint that cannot be read, or that belongs to another network."""


class OutputError(PathsumError):
    """A folder or file that cannot be written to, or that holds something else already."""
