"""The exception tree. Each class carries the exit code that `recsys` ends with.

Every message has three parts: what is wrong with the value seen, where it is, what to do next.
"""


class RecsysError(Exception):
    """Root of every error we raise on purpose; the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(RecsysError):
    """The command line or `recsys.toml` cannot be used as written."""

    exit_code = 2


class DataError(RecsysError):
    """An input table is missing, unreadable or holds values we must not train on."""

    exit_code = 3


class AuditError(RecsysError):
    """A gate refused to publish; what was served stays served."""

    exit_code = 4


class ResourceError(RecsysError):
    """Disk, memory or I/O failed or would fail."""

    exit_code = 5


class ModelError(RecsysError):
    """A model file or the registry is missing, corrupt, or not what its hash says."""

    exit_code = 6


class ReportError(RecsysError):
    """Recommendations are published, but the report after it failed; rerun the report alone."""

    exit_code = 7


class AlreadyRunningError(RecsysError):
    """Another run holds the lock of this output folder."""

    exit_code = 75


class DeadlineError(RecsysError):
    """The deadline passed; finished shards are kept, nothing was published."""

    exit_code = 124


class StoppedError(RecsysError):
    """A signal asked the run to stop; its exit code is 128 + the signal's number."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("stopped by a signal; finished work is kept, readers keep a whole release; run again to go on")
        self.exit_code = exit_code


def shown(value: object, limit: int = 80) -> str:
    r"""`value` as it may stand in a message or a log: escaped, on one line, at most `limit` characters.

    >>> shown("a\nb")
    "'a\\nb'"
    >>> shown("x" * 100, limit=5)
    "'xxxx…"
    """
    text = ascii(value) if isinstance(value, str) else ascii(str(value))
    return text if len(text) <= limit else text[:limit] + "…"
