"""The few settings worth tuning: where each may go, which stage it belongs to, and how it reads in TOML."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recsys.config import RECENCY, Config, parse_config
from recsys.errors import ConfigError

MARK = "# found by recsys tune"  # first line of the files it writes

Value = int | float
Settings = dict[str, Value]


@dataclass(frozen=True)
class Dial:
    """One setting.

    Args:
        name: such as "cf.factors".
        group: dials that are turned together, since they cost the same stages.
        low, high: where it may go; a setting outside of it was chosen on purpose and is left alone.
        is_log: whether steps count by ratio.
    """

    name: str
    group: str
    low: Value
    high: Value
    is_log: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers make sense."""
        return isinstance(self.low, int)

    def rounded(self, value: Value) -> Value:
        """Three digits: no data tell more, and people have to read it."""
        return int(value) if self.is_whole else float(f"{value:.3g}")


# From the cheapest stage to redo to the dearest within CF and text; the order of the groups is that of their turns.
DIALS = (
    Dial("cf.ease_regularization", "ease", 2.0, 128.0),
    Dial("cf.ease_text_share", "ease", 0.0, 1.0, is_log=False),
    Dial("cf.half_life_days", "ease", 7.0, 365.0),
    Dial("cf.history_decay", "ease", 0.5, 1.0, is_log=False),
    Dial("ranker.leaves", "ranker", 7, 63),
    Dial("ranker.learning_rate", "ranker", 0.01, 0.2),
    Dial("ranker.min_rows_per_leaf", "ranker", 10, 500),
    Dial("text.temperature", "text", 0.03, 0.3),
    Dial("text.history_decay", "text", 0.3, 1.0, is_log=False),
    Dial("text.head_steps", "text", 200, 1200),
    Dial("cf.factors", "als", 32, 256),
    Dial("cf.alpha", "als", 1.0, 100.0),
    Dial("cf.regularization", "als", 0.01, 10.0),
    Dial("candidates.per_source", "candidates", 50, 200),
)
GROUPS = tuple(dict.fromkeys(dial.group for dial in DIALS))
BLOCK = 3  # trials of one group in a row: what the other stages made is used again


def value_of(config: Config, name: str) -> Value:
    """A setting by its dotted name."""
    section, key = name.split(".")
    value: Value = getattr(getattr(config, section), key)
    return value


def free_dials(config: Config, groups: Sequence[str] = GROUPS) -> tuple[tuple[Dial, ...], tuple[Dial, ...]]:
    """The dials of some groups that may be turned, and those that the config sets beyond their range.

    What training learns by itself is no dial.
    """
    learned = {f"cf.{key}" for key in RECENCY} if config.cf.learn_recency else set()
    wanted = [dial for dial in DIALS if dial.group in groups and dial.name not in learned]
    inside = {dial.name: dial.low <= value_of(config, dial.name) <= dial.high for dial in wanted}
    return tuple(d for d in wanted if inside[d.name]), tuple(d for d in wanted if not inside[d.name])


def group_of(n_done: int, groups: Sequence[str]) -> str:
    """Whose turn it is after so many finished trials; the first one is the defaults'.

    >>> [group_of(n, ["a", "b"]) for n in (1, 3, 4, 7)]
    ['a', 'a', 'b', 'a']
    """
    return groups[(n_done - 1) // BLOCK % len(groups)]


def with_settings(config: Config, settings: Mapping[str, Value]) -> Config:
    """A config with some settings changed, checked again."""
    content = config.model_dump()
    for name, value in settings.items():
        section, key = name.split(".")
        content[section][key] = value
    return parse_config(content)


def toml_lines(settings: Mapping[str, Value]) -> list[str]:
    """Settings as they stand in recsys.toml.

    >>> toml_lines({"cf.factors": 64, "text.temperature": 0.07, "cf.alpha": 2.0})
    ['[cf]', 'factors = 64', 'alpha = 2.0', '[text]', 'temperature = 0.07']
    """
    tables: dict[str, list[str]] = {}
    for name, value in settings.items():
        section, key = name.split(".")
        tables.setdefault(section, []).append(f"{key} = {json.dumps(value)}")
    return [line for section, lines in tables.items() for line in (f"[{section}]", *lines)]


def refuse_foreign(path: Path) -> None:
    """Refuses to write over a file that no tuning wrote, such as recsys.toml itself.

    Raises:
        ConfigError: naming the file.
    """
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise ConfigError(f"--write {path}: is there and not from recsys tune; name another file, or move it away")
