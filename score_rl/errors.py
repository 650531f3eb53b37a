"""Errors whose message names what was wrong and the mend; the command line prints them as one line."""


class ScoreError(Exception):
    """Base of every error that a user can mend.

    Attributes:
        told: every process of the run knows of it and fails with it, so that one of them can say it for all.
    """

    told = False


class ConfigError(ScoreError, ValueError):
    """A setting, a model or a combination of the two that cannot work."""


class DataError(ScoreError, ValueError):
    """A data set, or a row of one, that cannot be used."""


class MissingExtra(ScoreError, ImportError):
    """An optional library that is not installed."""


class CheckpointError(ScoreError, RuntimeError):
    """A run directory or a checkpoint that cannot be read, written or continued."""


class SyncError(ScoreError, RuntimeError):
    """An engine that samples from other weights than the policy's."""


class EndpointError(ScoreError, ConnectionError):
    """A server that cannot be reached, or that refuses what it is asked."""


class ProcessError(ScoreError, RuntimeError):
    """Processes of one run that cannot work together, or what went wrong in another of them."""


class ProcessLost(ProcessError):
    """A process of the run is gone."""
