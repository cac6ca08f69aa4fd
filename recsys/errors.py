"""The exception tree. Each class carries the exit code that `recsys` ends with.

Every message has three parts: what is wrong with the value seen, where it is, what to do next.
"""

import re


class RecsysError(Exception):
    """Root of every error we raise on purpose; the command line prints it without a traceback."""

    exit_code = 1
    is_told = False  # whether a log has it already


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


class TrainingError(RecsysError):
    """Recommendations are published, by the model of before: the training that was due failed."""

    exit_code = 8


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


def as_ours(error: BaseException) -> BaseException:
    """What the system refused (a file, a disk, memory) as ResourceError; any other error as it is."""
    if isinstance(error, MemoryError):
        return ResourceError(
            "memory is used up; for scoring lower serving.chunk_users and serving.users_per_shard, for training "
            "ranker.max_users and cf.ease_items, then run again"
        )
    if isinstance(error, OSError):
        place = shown(error.filename, 300) if error.filename else "a file or stream"
        return ResourceError(f"{place}: {error.strerror or error}; mend it, then run again; what was served stays")
    return error


def shown(value: object, limit: int = 80) -> str:
    r"""`value` as it may stand in a message or a log: on one line, at most `limit` characters; letters of any script stay,
    what does not print is escaped.

    >>> print(shown("größe\nb\u202e"))
    'größe\nb\u202e'
    >>> shown("x" * 100, limit=5)
    "'xxxx…"
    """
    text = repr(value if isinstance(value, str) else str(value))
    return text if len(text) <= limit else text[:limit] + "…"


def plain(value: object, limit: int = 120) -> str:
    """A value as plain text for a terminal: no control characters, no bidi overrides, one line."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def public(text: str) -> str:
    """A URI, or a text with some, without user, password and what follows a question mark: signed URLs hold keys there.

    >>> public("cannot reach https://me:p@ss@host/x?sig=1 now")
    'cannot reach https://host/x now'
    >>> public("https://host/a.csv?KEY")
    'https://host/a.csv'
    >>> public("postgresql://me:p/ss?@host:5432/db"), public("https://host:9/a@b.csv"), public("url: /?token=1/api")
    ('postgresql://host:5432/db', 'https://host:9/a@b.csv', 'url: /')
    """
    text = re.sub(r"(?<=://)[^/\s?'\"]*@", "", text)
    # a password that was not escaped; what stands behind a colon may be a port as well
    text = re.sub(r"(?<=://)[^/\s:@?\['\"]*:(?!\d*(?:[/?\s'\"]|$))[^\s'\"]*?@", "", text)
    text = re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)
    return re.sub(r"(?<=[\w/])\?[\w%.~+=&/-]*=[\w%.~+=&/-]*", "", text)
