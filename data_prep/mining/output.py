"""The output folder: its plan, its finished subsets, and the file that completes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data_prep.mining.settings import MiningSettings
from vlm2vec.errors import InputError
from vlm2vec.files import sha256_of
from vlm2vec.formats.json_files import parsed, read_json
from vlm2vec.mined.format import MINED_NAME, MINING_PLAN_NAME, Mined, MinedRecord, Teacher
from vlm2vec.shards import ShardSet, is_url
from vlm2vec.shards.manifest import write_json

EMBEDDINGS_FOLDER = "embeddings"
_PARTS_FOLDER = "parts"
_RECORD = TypeAdapter(MinedRecord)


@dataclass(frozen=True)
class MiningPlan:
    """Everything that decides the folder's content; a restart must have the same plan.

    Attributes:
        shards: Fingerprint of the shards.
        subsets: The subsets to mine.
        teacher: The model that scores.
        settings: The settings as they were given.
    """

    shards: str
    subsets: tuple[str, ...]
    teacher: Teacher
    settings: MiningSettings

    def content(self) -> dict[str, Any]:
        """The form in which it is stored, without the teacher's name, which decides nothing."""
        return {
            "shards": self.shards,
            "subsets": list(self.subsets),
            "teacher": self.teacher.digest,
            **asdict(self.settings),
        }


class OutputFolder:
    """The output folder of a run.

    Args:
        root: Its path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def refuse_shards(self, shards: str) -> None:
        """Refuses an output folder that is the shards' folder or inside it.

        Raises:
            InputError: It is.
        """
        if is_url(shards):
            return
        own, other = self.root.resolve(), Path(shards).resolve()
        if own == other or other in own.parents:
            raise InputError(
                f"--output_dir {self.root}: is inside the shards' folder, which must not change; use a different one"
            )

    def begin(self, plan: MiningPlan) -> None:
        """Writes the plan into a new folder, or compares it with the plan in the folder.

        Raises:
            InputError: The folder has a different plan, or is not empty.
        """
        path = self.root / MINING_PLAN_NAME
        if path.is_file():
            before = read_json(path)
            for name, value in plan.content().items():
                if before.get(name) != json.loads(json.dumps(value)):
                    raise InputError(
                        f"{self.root}: was started with a different {name} ({_short(before.get(name))}, now "
                        f"{_short(value)}); use the same, or a different --output_dir (--embeddings_dir shares vectors)"
                    )
            return
        others = [entry.name for entry in self.root.iterdir() if entry.name != EMBEDDINGS_FOLDER]
        if others:
            raise InputError(
                f"{self.root}: not empty ({sorted(others)[0]}), and not a folder of this program; use a different one"
            )
        write_json(path, plan.content())

    def is_complete(self) -> bool:
        """Whether everything was mined."""
        return (self.root / MINED_NAME).is_file()

    def finished(self, subset: str) -> MinedRecord | None:
        """The record of a finished subset; None if it is not finished, or its file does not match the record."""
        path = self._part(subset)
        if not path.is_file():
            return None
        record = parsed(_RECORD, path.read_bytes(), str(path))
        file = self.root / record.file
        return record if file.is_file() and sha256_of(file) == record.sha256 else None

    def finish_subset(self, subset: str, record: MinedRecord) -> None:
        """Stores the record of a subset whose file is complete."""
        self._part(subset).parent.mkdir(exist_ok=True)
        write_json(self._part(subset), asdict(record))

    def complete(self, plan: MiningPlan, records: Mapping[str, MinedRecord]) -> Mined:
        """Writes `mined.json`."""
        mined = Mined(self.root, plan.shards, plan.teacher, plan.settings.cluster_size, records)
        mined.write()
        return mined

    def remove_parts(self, subsets: Sequence[str]) -> None:
        """Removes the files that only a restart needs."""
        for name in subsets:
            self._part(name).unlink(missing_ok=True)
        if self._part("").parent.is_dir():
            self._part("").parent.rmdir()

    def _part(self, subset: str) -> Path:
        return self.root / _PARTS_FOLDER / f"{subset}.json"


def shards_of(path: str, subsets: Sequence[str]) -> ShardSet:
    """Opens the shards of the subsets to mine; "all" means all subsets.

    Raises:
        InputError: See `ShardSet.open`.
    """
    return ShardSet.open(path, None if list(subsets) == ["all"] else subsets)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
