"""`recsys.toml` as strict, frozen models; every problem of a file is reported in one message."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from recsys.errors import ConfigError, shown
from recsys.schema import MOST_WEIGHT, TABLES, columns_of

LEAST_WEIGHT = 1e-6  # of an event type; below lie slips only


class Section(BaseModel):
    """Base of all tables: unknown keys and values of another type are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)


Words = Annotated[tuple[str, ...], Field(strict=False)]  # TOML and JSON write a list


class DataConfig(Section):
    """Where the tables are, which events are labels, and how time is cut."""

    events: str = Field(description="Events table: Parquet or CSV file, folder, glob or URL.")
    items: str = Field(description="Items table: Parquet or CSV file, folder, glob or URL.")
    users: str | None = Field(None, description="Optional users table; its columns become report segments.")
    impressions: str | None = Field(None, description="Optional impressions table, for off-policy estimates.")
    event_weights: dict[str, float] = Field(
        description="Event types that are labels, and how much each counts against the others."
    )
    columns: dict[str, str | dict[str, str]] = Field(
        default_factory=dict,
        description='Our column = yours, for every table; or one sub-table per table: [data.columns.items] item_id = "sku".',
    )
    timezone: str | None = Field(None, description="Zone of times that carry none, such as 'Europe/Madrid'.")
    max_bad_share: float = Field(0.001, ge=0, le=1, description="Stop when a larger share of rows is quarantined.")
    window_share: float = Field(
        0.1, gt=0, lt=0.5, description="Share of events in the ranker's and in the test window."
    )
    window_days: float | None = Field(None, gt=0, description="Length of both windows in days, instead of a share.")
    split_column: str | None = Field(None, description="Column holding train/valid/test, instead of cuts in time.")

    def mappings(self, table: str) -> tuple[dict[str, str], dict[str, str]]:
        """Our names and theirs: in every table, and in one alone."""
        every = {ours: theirs for ours, theirs in self.columns.items() if isinstance(theirs, str)}
        own = self.columns.get(table, {})
        return every, own if isinstance(own, dict) else {}

    @field_validator("columns", mode="before")
    @classmethod
    def _no_setting(cls, columns: Any) -> Any:
        """In TOML, what stands below a table's name is its own."""
        settings = set(cls.model_fields) - set(TABLES)
        if isinstance(columns, dict) and (found := [name for name in columns if name in settings]):
            raise ValueError(f"{', '.join(found)} belongs to [data]: write it above the line [data.columns], not below")
        return columns

    @field_validator("columns")
    @classmethod
    def _tables(cls, columns: dict[str, str | dict[str, str]]) -> dict[str, str | dict[str, str]]:
        for name, value in columns.items():
            if isinstance(value, dict) and name not in TABLES:
                raise ValueError(f"no table is called {name}; {_hint(name, TABLES)}")
        return columns

    @field_validator("event_weights")
    @classmethod
    def _positive(cls, weights: dict[str, float]) -> dict[str, float]:
        if not weights or not all(LEAST_WEIGHT <= w <= MOST_WEIGHT for w in weights.values()):
            raise ValueError(
                f"name at least one event type, each with a weight from {LEAST_WEIGHT:f} to {MOST_WEIGHT:,}"
            )
        return weights


class TextConfig(Section):
    """The text tower: a BERT encoder fine-tuned on the labels."""

    encoder: str = Field("all-MiniLM-L6-v2", description="The packaged encoder, a folder, or a hub name 'org/model'.")
    fields: Words = Field(
        ("title", "brand", "category", "tags", "description"),
        description="Item columns that make the text, in order; [] is a shop without words.",
    )
    max_tokens: int = Field(64, ge=8, le=512, description="Longer texts are cut.")
    epochs: float = Field(1.0, ge=0, description="Passes over the catalogue; 0 leaves the encoder as it is.")
    max_minutes: float = Field(4.0, gt=0, description="Fine-tuning stops after this time, keeping the best state.")
    learning_rate: float = Field(1e-5, gt=0, description="Of encoder and head, at its highest.")
    head_steps: int = Field(
        600, ge=0, description="Training steps of the head on cached vectors: before the encoder's, and at each moment."
    )
    temperature: float = Field(0.1, gt=0, description="Divides cosines in the softmax.")
    batch_items: int = Field(256, ge=8, description="Unique items encoded per step.")
    frozen_layers: int = Field(2, ge=0, description="Lower encoder layers that are not trained.")
    history_decay: float = Field(0.6, gt=0, le=1, description="Weight of an item per step back in the history.")
    cache: str = Field(".recsys/cache", description="Folder of item vectors, by hash of text and encoder.")


RECENCY = ("half_life_days", "history_decay")  # settings of [cf] that `learn_recency` chooses


class CFConfig(Section):
    """The collaborative-filtering tower: implicit ALS, item-item and EASE."""

    factors: int = Field(128, ge=1, description="Numbers that ALS keeps of a user and of an item.")
    regularization: float = Field(0.1, gt=0, description="Pull of ALS towards zero.")
    alpha: float = Field(
        20.0, gt=0, description="Confidence in what a user took is alpha * decayed weight; in all else 1."
    )
    iterations: int = Field(12, ge=1, description="Rounds of ALS.")
    learn_recency: bool = Field(
        True,
        description="Choose half_life_days and history_decay by EASE on the ranker's window; false takes them as set.",
    )
    half_life_days: float = Field(45.0, gt=0, description="Age at which an event counts half.")
    history_decay: float = Field(0.9, gt=0, le=1, description="Weight of an item per step back in the history.")
    neighbours: int = Field(100, ge=1, description="Item-item and EASE weights kept per item.")
    ease_items: int = Field(6000, ge=1, description="Most taken items that EASE covers; its time grows with the cube.")
    ease_regularization: float = Field(16.0, gt=0, description="Times the mean squared mass of an item.")
    ease_text_share: float = Field(0.5, ge=0, le=1, description="Part of it that pulls towards texts, not to zero.")


class CandidatesConfig(Section):
    """How many items each source puts forward per user."""

    per_source: int = Field(100, ge=1, description="From text, ALS, item-item, EASE and the user's own past, each.")
    popular: int = Field(
        50, ge=1, description="From the popular lists of the last 7 days, 30 days and of all time, each."
    )
    new: int = Field(20, ge=0, description="New items by text similarity.")


class RankerConfig(Section):
    """A linear fusion of the candidates' scores, and LightGBM LambdaMART that starts from it."""

    trees: int = Field(300, ge=1, description="At most; training stops where more do not help.")
    leaves: int = Field(31, ge=2, description="Of a tree, at most.")
    learning_rate: float = Field(0.05, gt=0, description="Share of a tree's correction that counts.")
    min_rows_per_leaf: int = Field(50, ge=1, description="Pairs of user and item that a leaf must hold.")
    max_users: int = Field(20_000, ge=1, description="Users sampled for the ranker's training.")
    max_feature_auc: float = Field(
        0.995, gt=0.5, le=1, description="A feature that alone sorts the labels better than this has seen the future."
    )
    calibrate: bool = Field(True, description="Fill `p`, the probability that the user takes the item.")


class RulesConfig(Section):
    """What may be recommended."""

    exclude_seen: bool = Field(True, description="Never recommend what the user already acted on.")
    seen_by: Words = Field(
        (), description='Labels that count as having acted on an item, such as ["purchase"]; [] means all of them.'
    )
    hidden_by: Words = Field(
        (),
        description='Event types by which a user takes an item out of their own lists for good, such as ["hide"]; not labels.',
    )
    blocked: list[str | int] = Field(
        default_factory=list,
        description="Ids of items never to recommend, such as recalled ones; from the next scoring on.",
    )
    max_per_category: int | None = Field(
        None,
        ge=1,
        description="Most items of one category in a list; the next best take their places. None: any number.",
    )
    max_per_brand: int | None = Field(None, ge=1, description="Most items of one brand in a list, likewise.")

    @property
    def only_new(self) -> bool:
        """Whether nothing that a user ever took is recommended again."""
        return self.exclude_seen and not self.seen_by


RULES_AT_ONCE = ("blocked", "hidden_by", "max_per_category", "max_per_brand")
"""Rules of what is listed alone: nothing is learned from them, so they hold from the next scoring on."""


class AuditConfig(Section):
    """Gates between a finished scoring and its publication."""

    max_rows_change: float = Field(0.2, gt=0, description="Largest change of the row count against the last release.")
    min_users_covered: float = Field(0.995, ge=0, le=1, description="Smallest share of users with a list.")
    min_overlap: float = Field(
        0.05, ge=0, le=1, description="Smallest mean overlap of a user's list with the last release."
    )
    max_overlap: float = Field(
        0.995, ge=0, le=1, description="More in common with the last lists warns: nothing moves."
    )
    max_fallback_share: float = Field(0.05, ge=0, le=1, description="Largest share of users served a popularity list.")
    min_coverage: float = Field(0.0, ge=0, le=1, description="Smallest share of the catalogue in anybody's list.")
    max_gini: float = Field(0.999, ge=0, le=1, description="Largest Gini coefficient of item exposure.")
    model_warn_days: float = Field(14, gt=0, description="An older model warns.")
    model_max_days: float = Field(30, gt=0, description="An older model is refused.")
    data_warn_hours: float = Field(36, gt=0, description="An older newest event warns.")
    data_max_hours: float = Field(72, gt=0, description="An older newest event is refused.")
    may_lack: Words = Field(
        (), description="Columns that tables may lack although the served release was made with them."
    )


class ServingConfig(Section):
    """Batch scoring and publication."""

    output: str = Field("out", description="Folder of releases; `current` in it is what readers open.")
    k: int = Field(20, ge=1, description="Recommendations per user.")
    users_per_shard: int = Field(50_000, ge=1, description="Users per part file.")
    chunk_users: int = Field(256, ge=1, description="Users scored at once; bounds memory.")
    train_every_days: float = Field(7, gt=0, description="`nightly` trains when the newest model is older.")
    keep_releases: int = Field(14, ge=2, description="Releases that `gc` leaves.")
    audit: AuditConfig = Field(default_factory=AuditConfig)


class MlflowConfig(Section):
    """Tracking and registry."""

    tracking_uri: str | None = Field(None, description="Default: sqlite:///mlflow.db beside the config.")
    experiment: str = Field("recsys", min_length=1, description="Where runs are logged.")
    model_name: str = Field("recsys", min_length=1, description="Under which versions are registered.")
    timeout_s: int = Field(30, ge=1, description="Longest wait for a registry that does not answer.")


class FloorsConfig(Section):
    """Smallest margins of the guardrails, each in its own unit: a share of nearly nothing may move by chance alone."""

    coverage: float = Field(0.01, ge=0, description="Share of the catalogue.")
    gini: float = Field(0.05, ge=0, description="Gini coefficient of item exposure.")
    novelty: float = Field(0.1, ge=0, description="Bits.")
    diversity: float = Field(0.02, ge=0, description="One less the mean cosine of a list.")
    serendipity: float = Field(0.005, ge=0, description="Share of a user's labels.")
    calibration: float = Field(0.05, ge=0, description="Nats.")
    cold: float = Field(0.01, ge=0, description="Share of a list.")
    fill: float = Field(0.01, ge=0, description="Share of a list.")
    cost_ms: float = Field(1.0, ge=0, description="Milliseconds a user.")


class ReportConfig(Section):
    """Evaluation and the offline A/B report; thresholds are fixed before any metric is computed."""

    max_users: int = Field(20_000, ge=1, description="Users sampled for evaluation tables.")
    min_lift: float = Field(0.01, ge=0, description="Relative lift of NDCG@10 that a promotion needs.")
    alpha: float = Field(0.05, gt=0, lt=1, description="Level of tests and intervals.")
    guardrail_margin: float = Field(0.05, ge=0, description="Relative loss tolerated on a guardrail.")
    guardrail_floors: FloorsConfig = Field(default_factory=FloorsConfig)
    cost_margin: float = Field(1.0, ge=0, description="Relative growth tolerated of the time to score a user.")
    min_segment_users: int = Field(100, ge=2, description="Smaller segments are not judged.")
    max_missing_users: float = Field(0.01, ge=0, le=1, description="Largest share of users listed in one arm alone.")
    max_short_lists: float = Field(0.01, ge=0, le=1, description="Largest share of an arm's lists under k items.")
    min_seeds: int = Field(3, ge=1, description="Training seeds that a promotion of a model version needs.")
    min_windows: int = Field(3, ge=1, description="Rolling windows that a promotion of a model version needs.")
    clip_weight: float = Field(10.0, gt=0, description="Where off-policy weights are clipped, switched and shrunk.")
    min_effective_sample: float = Field(1000, ge=1, description="Fewer effective rows refuse off-policy estimates.")
    min_policy_overlap: float = Field(0.8, ge=0, le=1, description="Share of an arm's slots that the log must know.")
    online_share_b: float = Field(0.5, gt=0, lt=1, description="Share of users meant for B where both ran online.")


class Config(Section):
    """The whole of `recsys.toml`."""

    seed: int = Field(0, ge=0, description="One seed for everything random.")
    data: DataConfig
    text: TextConfig = Field(default_factory=TextConfig)
    cf: CFConfig = Field(default_factory=CFConfig)
    candidates: CandidatesConfig = Field(default_factory=CandidatesConfig)
    ranker: RankerConfig = Field(default_factory=RankerConfig)
    rules: RulesConfig = Field(default_factory=RulesConfig)
    serving: ServingConfig = Field(default_factory=ServingConfig)
    mlflow: MlflowConfig = Field(default_factory=MlflowConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)

    @model_validator(mode="after")
    def _no_column_is_misspelt(self) -> "Config":
        """A mapping to a name that nothing reads, but for a slip would, must not pass as an extra column."""
        read = {*self.text.fields, self.data.split_column}
        for table, columns in _mappings(self.data.columns):
            known = columns_of(table)
            for ours in (column for column in columns if column not in known and column not in read):
                if near := difflib.get_close_matches(ours, known, n=1, cutoff=0.8):
                    where = f"data.columns.{table}" if table else "data.columns"
                    raise ValueError(f"{where}: nothing reads a column {shown(ours)}; did you mean {near[0]}?")
        return self

    @model_validator(mode="after")
    def _types_of_rules(self) -> "Config":
        """A type that is no label would leave everything unseen without a word, and one cannot speak for and against an item."""
        labels = list(self.data.event_weights)
        for name in self.rules.seen_by:
            if name not in labels:
                raise ValueError(
                    f"rules.seen_by: {shown(name)} is no label of data.event_weights; {_hint(name, labels)}"
                )
        if self.rules.seen_by and not self.rules.exclude_seen:
            raise ValueError(
                "rules.seen_by: exclude_seen = false lists what was seen, by whatever label; set one of both"
            )
        if liked := [name for name in self.rules.hidden_by if name in labels]:
            raise ValueError(
                f"rules.hidden_by: {shown(liked[0])} is a label of data.event_weights, so it speaks for an item; name types "
                "that are no labels, or set rules.seen_by for those that are"
            )
        return self

    def beside_cache(self, name: str) -> Path:
        """A folder beside `text.cache`, of what a run left off or fetched: all of it can be made again."""
        return Path(self.text.cache).parent / name

    def with_rules_of(self, other: "Config | None") -> "Config":
        """The same with the rules of another run that hold from the next scoring on; without any for None."""
        rules = other.rules if other else RulesConfig()
        own = {name: getattr(rules, name) for name in RULES_AT_ONCE}
        return self.model_copy(update={"rules": self.rules.model_copy(update=own)})

    def recipe_sha256(self) -> str:
        """sha256 of the settings that a training depends on; where and how lists are served is no part of it.

        Nor are rules that hold from the next scoring on: a recall makes no other recipe.
        """
        free = self.with_rules_of(None)
        return free.fingerprint("seed", "data", "text", "cf", "candidates", "ranker", "rules")

    def fingerprint(self, *sections: str) -> str:
        """sha256 of the settings that change results; where files lie does not, nor what only refuses a result, nor when and in
        what portions the work is done.

        Args:
            sections: names of tables to hash, such as "text"; none means all of them.
        """
        places: Any = {
            "data": {"events", "items", "users", "impressions"},
            "text": {"cache"},
            "ranker": {"max_feature_auc"},
            "serving": {"output", "audit", "users_per_shard", "chunk_users", "train_every_days", "keep_releases"},
            "mlflow": True,
        }
        dump = self.model_dump(mode="json", exclude=places)
        # recipes of registered versions keep their hashes, so that a version on newer data is known as a refresh
        dump["data"]["max_bad_share"] = DataConfig.model_fields["max_bad_share"].default
        for name in (name for name in (*RULES_AT_ONCE, "seen_by") if not getattr(self.rules, name)):
            del dump["rules"][name]
        chosen = {name: dump[name] for name in sections} if sections else dump
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def _mappings(columns: dict[str, str | dict[str, str]]) -> list[tuple[str | None, list[str]]]:
    """Tables (None: all of them) and our names that are mapped there; not of users, whose every column may be read."""
    common = [ours for ours, theirs in columns.items() if isinstance(theirs, str)]
    own = [(table, list(names)) for table, names in columns.items() if isinstance(names, dict) and table != "users"]
    return [(None, common), *own]


_NO_TOML = (ValueError, RecursionError)  # numbers of 5,000 digits and arrays 1,000 deep are TOML, but not read
_PATHS = {"data": ("events", "items", "users", "impressions"), "text": ("cache",), "serving": ("output",)}


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a TOML file, applies `--set` overrides, resolves relative paths against its folder.

    Args:
        path: the file.
        overrides: "table.key=value" with a TOML value; a bare word counts as a string.

    Raises:
        ConfigError: the file is missing or no TOML, or holds unknown keys or bad values; all of
            them are in the one message, an unknown key with the nearest known one.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors may write a mark of the encoding
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder; name the file in it, such as {path / 'recsys.toml'}") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; make one with: recsys init {path.parent}") from None
    except _NO_TOML as error:
        raise ConfigError(f"{path}: not TOML: {error}; mend the line it names") from None
    for override in overrides:
        _apply_override(raw, override)
    config = parse_config(raw, str(path))
    _refuse_blank_paths(config, str(path))
    return _resolve(config, path.resolve().parent)


def parse_config(raw: Mapping[str, Any], where: str = "config") -> Config:
    """Validates a nested mapping; `where` names it in the error."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = [_problem(dict(e)) for e in error.errors()]
        raise ConfigError(f"{where}: {len(problems)} problem(s)\n" + "\n".join(f"  {p}" for p in problems)) from None


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name.

    >>> flat({"a": {"b": 1}})
    {'a.b': 1}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    return Config.model_json_schema()


def _apply_override(raw: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {shown(override)}: expected table.key=value, such as text.epochs=2")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except _NO_TOML:
        value = text
    *tables, key = name.strip().split(".")
    target = raw
    for table in tables:
        target = target.setdefault(table, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {shown(override)}: {table} is a value, not a table")
    target[key] = value


def _problem(error: dict[str, Any]) -> str:
    """One validation error of pydantic as 'where: what; remedy'."""
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        return f"{location}: unknown key; {_hint(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{location}: required, but not there"
    if not location:  # of several settings together; the message names them
        return str(error["msg"]).removeprefix("Value error, ")
    return f"{location}: {error['msg']}; got {shown(error['input'])}"


def _hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _refuse_blank_paths(config: Config, where: str) -> None:
    """A blank path would stand for the folder of the file; the config of a stored model has them, as it names no tables."""
    given = {f"{name}.{key}": getattr(getattr(config, name), key) for name, keys in _PATHS.items() for key in keys}
    if blank := [name for name, value in given.items() if value is not None and not value.strip()]:
        raise ConfigError(f"{where}: {', '.join(blank)}: blank; name a place, or leave out what has a default")


def _resolve(config: Config, folder: Path) -> Config:
    changes: dict[str, Any] = {}
    for name, keys in _PATHS.items():
        section = getattr(config, name)
        absolute = {key: _absolute(getattr(section, key), folder) for key in keys}
        changes[name] = section.model_copy(update=absolute)
    if config.text.encoder.startswith((".", "/", "~/")):
        changes["text"] = changes["text"].model_copy(update={"encoder": _absolute(config.text.encoder, folder)})
    uri = config.mlflow.tracking_uri or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and uri != "sqlite:///:memory:":
        uri = f"sqlite:///{_absolute(uri.removeprefix('sqlite:///'), folder)}"
    changes["mlflow"] = config.mlflow.model_copy(update={"tracking_uri": uri})
    return config.model_copy(update=changes)


def _absolute(value: str | None, folder: Path) -> str | None:
    if value is None or "://" in value:
        return value
    return str(folder / (Path(value).expanduser() if value.startswith("~/") else value))


Verdict = Literal["PROMOTE", "HOLD", "REJECT", "INVALID"]
