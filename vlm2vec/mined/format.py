"""Format of the mined sidecar: a folder next to the shards with one parquet file per subset and `mined.json`.

A subset's file has one row per sample, in the order of positions (as `ShardSet` and `GlobalOrder` count them):

- `positive_score` float32: cosine of the sample's query and its target, by the teacher.
- `negatives` list<int32>: positions of the same subset whose targets are hard negatives of the sample, hardest first.
- `negative_scores` list<float32>: the teacher's cosine of the query and each of `negatives`.
- `false_negatives` list<int32>: positions, ascending, whose targets must not count as negatives of the sample.
- `cluster` int32: number of the sample's cluster, -1 if it belongs to none; each cluster has `cluster_size` samples.

Samples of a subset may share a target (all "cat" of a classification). A list names each distinct target once, by the
first position that has it; to look for a sample's target in a list, compare targets, not positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter

from vlm2vec.errors import InputError
from vlm2vec.files import committed
from vlm2vec.formats.json_files import Count, Sha256, parsed
from vlm2vec.formats.tables import UNREADABLE_TABLE, num_rows
from vlm2vec.shards.manifest import fingerprint_of, write_json
from vlm2vec.shards.schema import SUBSET_NAME

SCHEMA_VERSION = 1
MINED_NAME = "mined.json"
# The miner writes it at its start, so that an incomplete folder is recognised.
MINING_PLAN_NAME = "plan.json"
NO_CLUSTER = -1
# A cosine in float32 may exceed 1 by this much.
_ROUNDING = 1e-3
_AGAIN = "mine again"

MINED_COLUMNS = pa.schema(
    [
        pa.field("positive_score", pa.float32(), nullable=False),
        pa.field("negatives", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
        pa.field("negative_scores", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
        pa.field("false_negatives", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
        pa.field("cluster", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Lists:
    """Lists of positions, concatenated.

    Attributes:
        values: The entries of all lists, int32 (entries,).
        offsets: List i is `values[offsets[i] : offsets[i + 1]]`, int64 (lists + 1,).
    """

    values: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> npt.NDArray[np.int32]:
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    @property
    def owners(self) -> npt.NDArray[np.int64]:
        """The list that each entry belongs to, int64 (entries,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


@dataclass(frozen=True)
class MinedSubset:
    """What was mined for one subset, by position; see the module.

    Attributes:
        positive_score: Cosine of query and target, float32 (samples,).
        negatives: One list of hard negatives per sample, hardest first.
        negative_scores: Cosines of the query and each of `negatives.values`, float32.
        false_negatives: One list per sample, ascending.
        cluster: Number of the cluster, int32 (samples,); `NO_CLUSTER` for samples outside clusters.
    """

    positive_score: npt.NDArray[np.float32]
    negatives: Lists
    negative_scores: npt.NDArray[np.float32]
    false_negatives: Lists
    cluster: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.positive_score)


@dataclass(frozen=True)
class Teacher:
    """The model that scored the pairs: its name as it was given, and a hash of the files that decide its vectors."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    digest: str


@dataclass(frozen=True)
class MinedRecord:
    """One subset in `mined.json`.

    Attributes:
        file: Name of its parquet file.
        sha256: SHA-256 of that file.
        num_samples: Number of its rows.
        num_negatives: Entries of all lists of hard negatives.
        num_false_negatives: Entries of all lists of false negatives.
        num_clusters: Number of clusters, of `cluster_size` samples each.
        settings: Settings that decided the content, for readers.
        summary: Statistics of the content, for readers.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    file: str
    sha256: Sha256
    num_samples: Count
    num_negatives: Count
    num_false_negatives: Count
    num_clusters: Count
    settings: dict[str, Any]
    summary: dict[str, Any]


@dataclass(frozen=True)
class _MinedFile:
    """`mined.json`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    fingerprint: Sha256
    schema_version: int
    shards: Sha256
    teacher: Teacher
    cluster_size: Count
    subsets: dict[str, MinedRecord]


_MINED_FILE = TypeAdapter(_MinedFile)


@dataclass(frozen=True)
class Mined:
    """A complete mined sidecar.

    Attributes:
        root: The folder.
        shards: Fingerprint of the shards that it was mined from.
        teacher: The model that scored the pairs.
        cluster_size: Samples per cluster; 0 if there are no clusters.
        subsets: Records of the subsets by name.
    """

    root: Path
    shards: str
    teacher: Teacher
    cluster_size: int
    subsets: Mapping[str, MinedRecord]

    @property
    def fingerprint(self) -> str:
        """Identifies the content: equal fingerprints mean equal lists and clusters."""
        return fingerprint_of(self._content())

    def write(self) -> None:
        """Writes `mined.json`, which completes the folder."""
        write_json(self.root / MINED_NAME, {"fingerprint": self.fingerprint, **self._content()})

    @staticmethod
    def open(root: str | Path, shards: str, num_samples: Mapping[str, int]) -> Mined:
        """Opens a folder for some subsets of a dataset.

        Args:
            root: The folder.
            shards: Fingerprint of the shards' manifest.
            num_samples: Number of samples of each subset that is used, by name.

        Raises:
            InputError: See `read`; or it was mined from different shards, or lacks one of the subsets.
        """
        mined = Mined.read(root)
        path = mined.root / MINED_NAME
        if mined.shards != shards:
            raise InputError(
                f"{path}: mined from different shards (fingerprint {mined.shards[:16]}, these have {shards[:16]}); "
                "mine these shards"
            )
        for name, count in num_samples.items():
            if name not in mined.subsets:
                raise InputError(f"{path}: subset {name} was not mined, only {', '.join(mined.subsets)}; mine it too")
            if mined.subsets[name].num_samples != count:
                raise InputError(
                    f"{path}: {mined.subsets[name].num_samples} samples of {name}, the shards have {count}; {_AGAIN}"
                )
        return mined

    @staticmethod
    def read(root: str | Path) -> Mined:
        """Reads `mined.json`.

        Raises:
            InputError: The file is missing (not mined, or mining is not complete), of a different version, or damaged.
        """
        root = Path(root)
        path = root / MINED_NAME
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _not_mined(root, error) from error
        _refuse_other_version(data, path)
        file = parsed(_MINED_FILE, data, str(path))
        mined = Mined(root, file.shards, file.teacher, file.cluster_size, file.subsets)
        if mined.fingerprint != file.fingerprint:
            raise InputError(f"{path}: the content does not match the fingerprint; it was edited or damaged, {_AGAIN}")
        for name, record in mined.subsets.items():
            if not SUBSET_NAME.fullmatch(name) or record.file != _file_name(name):
                raise InputError(f"{path}: {record.file!r} is not the file of a subset {name!r}; {_AGAIN}")
        return mined

    def subset(self, name: str) -> MinedSubset:
        """Reads and checks what was mined for a subset.

        Raises:
            InputError: The file is missing or damaged, or a value is impossible; the message names file and row.
        """
        record, path = self.subsets[name], self.root / _file_name(name)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path}: cannot read what was mined ({error.strerror}); copy it again or {_AGAIN}"
            ) from error
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise InputError(f"{path}: not the file that {MINED_NAME} names (sha256); copy it again or {_AGAIN}")
        try:
            with pq.ParquetFile(pa.BufferReader(content)) as file:
                if not file.schema_arrow.equals(MINED_COLUMNS):
                    raise InputError(f"{path}: the columns are not this version's; {_AGAIN}")
                if (found := num_rows(file)) != record.num_samples:
                    raise InputError(f"{path}: has {found} rows, {MINED_NAME} states {record.num_samples}; {_AGAIN}")
                table = file.read(use_threads=False)
                table.validate(full=True)
        except UNREADABLE_TABLE as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: cannot be read ({reason}); {_AGAIN}") from error
        mined = _from_table(table, path)
        for problem, rows in _impossible(mined, record, self.cluster_size):
            if len(rows):
                raise InputError(f"{path}: row {int(rows[0])}: {problem}; {_AGAIN}")
        clusters = len(np.unique(mined.cluster[mined.cluster != NO_CLUSTER]))
        counts = (len(mined.negatives.values), len(mined.false_negatives.values), clusters)
        if counts != (record.num_negatives, record.num_false_negatives, record.num_clusters):
            raise InputError(f"{path}: the number of negatives or clusters differs from {MINED_NAME}; {_AGAIN}")
        return mined

    def _content(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "shards": self.shards,
            "teacher": asdict(self.teacher),
            "cluster_size": self.cluster_size,
            "subsets": {name: asdict(record) for name, record in self.subsets.items()},
        }


def write_subset(
    root: Path, name: str, mined: MinedSubset, settings: Mapping[str, Any], summary: Mapping[str, Any]
) -> MinedRecord:
    """Writes a subset's file, which appears only when complete; the same content gives the same bytes.

    Returns:
        The subset's record for `Mined.subsets`.
    """
    columns = [
        pa.array(mined.positive_score, pa.float32()),
        _list_array(mined.negatives.offsets, mined.negatives.values, MINED_COLUMNS.field("negatives").type),
        _list_array(mined.negatives.offsets, mined.negative_scores, MINED_COLUMNS.field("negative_scores").type),
        _list_array(
            mined.false_negatives.offsets, mined.false_negatives.values, MINED_COLUMNS.field("false_negatives").type
        ),
        pa.array(mined.cluster, pa.int32()),
    ]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(columns, schema=MINED_COLUMNS), buffer, compression="zstd")
    content = buffer.getvalue()
    with committed(root / _file_name(name)) as temporary:
        temporary.write_bytes(content)
    return MinedRecord(
        file=_file_name(name),
        sha256=hashlib.sha256(content).hexdigest(),
        num_samples=len(mined),
        num_negatives=len(mined.negatives.values),
        num_false_negatives=len(mined.false_negatives.values),
        num_clusters=int(mined.cluster.max(initial=NO_CLUSTER)) + 1,
        settings=dict(settings),
        summary=dict(summary),
    )


def _impossible(
    mined: MinedSubset, record: MinedRecord, cluster_size: int
) -> Iterator[tuple[str, npt.NDArray[np.integer]]]:
    """Yields each possible problem and the rows that have it; later checks rely on earlier ones."""
    yield "positive_score is not a cosine", np.flatnonzero(~_are_cosines(mined.positive_score))
    for name, lists in (("negatives", mined.negatives), ("false_negatives", mined.false_negatives)):
        values, owners = lists.values, lists.owners
        yield f"{name} has a position that is none of {len(mined)}", owners[(values < 0) | (values >= len(mined))]
        yield f"{name} names the row itself", owners[values == owners]
        pairs = np.sort(owners * len(mined) + values)
        yield f"{name} names a position twice", pairs[1:][np.diff(pairs) == 0] // len(mined)
    owners, scores = mined.negatives.owners, mined.negative_scores
    yield "negative_scores has a number that is not a cosine", owners[~_are_cosines(scores)]
    yield "negatives are not ordered, hardest first", owners[1:][(np.diff(scores) > 0) & (np.diff(owners) == 0)]
    owners, values = mined.false_negatives.owners, mined.false_negatives.values
    yield "false_negatives are not ascending", owners[1:][(np.diff(values) < 0) & (np.diff(owners) == 0)]
    both = np.isin(mined.negatives.owners * len(mined) + mined.negatives.values, owners * len(mined) + values)
    yield "a position is a hard negative and a false negative", mined.negatives.owners[both]
    cluster = mined.cluster
    outside = (cluster < NO_CLUSTER) | (cluster >= record.num_clusters)
    yield f"cluster is none of {record.num_clusters}", np.flatnonzero(outside)
    members = np.bincount(cluster[cluster >= 0], minlength=record.num_clusters)
    wrong = np.flatnonzero(members != cluster_size)
    yield f"its cluster does not have {cluster_size} rows", np.flatnonzero(np.isin(cluster, wrong))


def _are_cosines(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    return np.abs(scores) <= 1 + _ROUNDING  # False for NaN


def _list_array(offsets: npt.NDArray[np.int64], values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind.value_type), type=kind)


def _from_table(table: pa.Table, path: Path) -> MinedSubset:
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        columns[name] = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        if column.null_count or (pa.types.is_list(column.type) and columns[name].flatten().null_count):
            raise InputError(f"{path}: column {name} has nulls; {_AGAIN}")
    negatives, scores = _lists(columns["negatives"]), columns["negative_scores"]
    if not np.array_equal(_lists(scores).offsets, negatives.offsets):
        raise InputError(f"{path}: negatives and negative_scores differ in length; {_AGAIN}")
    return MinedSubset(
        positive_score=columns["positive_score"].to_numpy(),
        negatives=negatives,
        negative_scores=scores.flatten().to_numpy(),
        false_negatives=_lists(columns["false_negatives"]),
        cluster=columns["cluster"].to_numpy(),
    )


def _lists(array: pa.ListArray) -> Lists:
    offsets = array.offsets.to_numpy().astype(np.int64)
    return Lists(array.flatten().to_numpy(), offsets - offsets[:1])


def _file_name(subset: str) -> str:
    return f"{subset}.parquet"


def _not_mined(root: Path, error: OSError) -> InputError:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return InputError(f"{root / MINED_NAME}: cannot be read ({error.strerror or error})")
    if (root / MINING_PLAN_NAME).is_file():
        return InputError(
            f"{root}: mining is not complete; run its command again (python -m data_prep.mine): it resumes"
        )
    return InputError(f"{root}: no {MINED_NAME}; expected the output folder of python -m data_prep.mine")


def _refuse_other_version(data: bytes, path: Path) -> None:
    """Refuses other schema versions; called before parsing, because their files need not match the schema."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())})") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: has schema version {version!r}, this code reads {SCHEMA_VERSION}; {_AGAIN}")
