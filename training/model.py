"""A trained model: both towers, the ranker and the items they know, as one folder of plain files."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features import pairs
from features.cold_items import with_cold_items
from features.dataset import Dataset
from features.histories import StoredHistories
from features.snapshot import ItemFacts, Snapshot
from features.text import distinct_texts, item_texts, pooled_vectors
from recsys.bundle import MANIFEST
from recsys.cf_tower import CFTower
from recsys.config import Config, parse_config
from recsys.errors import ModelError, shown
from recsys.ids import IdMap
from recsys.ranker import Ranker
from recsys.text_tower import TextTower
from recsys.types import Progress
from recsys.whole import mark_used


@dataclass(frozen=True)
class Model:
    """Everything that turns histories into recommendations.

    Args:
        config: it was trained with.
        text: the fine-tuned text tower.
        cf: the CF tower over `items`.
        ranker: of the pairs.
        items: ids of the items the CF tower knows.
    """

    config: Config
    text: TextTower
    cf: CFTower
    ranker: Ranker
    items: IdMap

    def save(self, folder: Path) -> None:
        """Writes all parts as plain files; `recsys.bundle.seal` adds the hashes."""
        folder.mkdir(parents=True, exist_ok=True)
        self.text.save(folder / "text")
        self.cf.save(folder)
        self.ranker.save(folder)
        pq.write_table(pa.table({"item_id": pa.array(self.items.ids)}), folder / "items.parquet")
        # where data lies and where results go belongs to the machine that scores, not to the model
        text = self.config.model_dump(mode="json")
        text["data"] |= {"events": "", "items": "", "users": None, "impressions": None}
        text["text"]["cache"] = ""
        text["serving"]["output"] = ""
        text["mlflow"]["tracking_uri"] = None
        (folder / "config.json").write_text(json.dumps(text, indent=2))

    @classmethod
    def load(cls, folder: Path) -> "Model":
        """A model saved by `save`; verify the folder first with `recsys.bundle.open_bundle`.

        Raises:
            ModelError: a part is damaged, or the ranker learned from other features than are computed today.
        """
        mark_used(folder / MANIFEST)
        ranker = Ranker.load(folder)
        if ranker.names != pairs.NAMES:  # as many by other names, or in another order, would be scored in silence
            raise ModelError(f"{folder}: its ranker learned from other features than are computed today; train again")
        items = pq.read_table(folder / "items.parquet", page_checksum_verification=True)["item_id"].to_pandas()
        return cls(
            parse_config(json.loads((folder / "config.json").read_text()), str(folder / "config.json")),
            TextTower.load(folder / "text"),
            CFTower.load(folder),
            ranker,
            IdMap.from_values(items),
        )

    def snapshot(self, dataset: Dataset, config: Config, progress: Progress | None = None) -> Snapshot:
        """The world of a data set at its `as_of`, ready to score; items this model never saw are cold.

        The data set may hold items of later, as one that was cut by `before` does: they are not there and say nothing.

        Args:
            config: of the run that scores: its cache folder and rules.
        """
        histories = StoredHistories(dataset)
        facts = ItemFacts.build(histories, dataset.catalogue)
        said = item_texts(dataset.catalogue, self.config.text.fields)
        texts, row = distinct_texts([text if there else "" for text, there in zip(said, facts.exists, strict=True)])
        pooled = pooled_vectors(self.text, texts, config.text.cache, progress)
        readings = [[some[i] for i in row] for some in (texts, self.text.pieces(texts))]
        known = self.items.positions(dataset.items.ids)
        if not (known >= 0).any():
            raise ModelError(
                f"the model knows {len(self.items):,} items, such as {shown(self.items.ids[0])}, none of the {len(known):,} of the "
                f"items table, such as {shown(dataset.items.ids[0])}; it is of another shop: set data.items, or train again"
            )
        cf = self.cf.for_catalogue(known)
        inputs = self.text.inputs(texts, pooled)
        cf = with_cold_items(cf, inputs[:, : self.text.hidden_size][row], readings)
        merged = self.config.model_copy(update={"rules": config.rules, "serving": config.serving})
        vectors = self.text.project(inputs)[row]
        return Snapshot(histories, vectors, cf, facts, dataset.available & facts.exists, merged)
