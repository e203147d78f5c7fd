"""Facts of MMEB and of the built-in mini-MMEB: training subsets, evaluation datasets, meta-tasks, published scores.

Source: the paper "VLM2Vec: Training Vision-Language Models for Massive Multimodal Embedding Tasks" (ICLR 2025), and the
cards of the datasets `TIGER-Lab/MMEB-train` and `TIGER-Lab/MMEB-eval`. Modalities are written "I" (image), "T" (text)
and "I+T"; an instruction around an image alone does not count as text.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from vlm2vec.errors import InputError

META_TASKS = ("classification", "vqa", "retrieval", "grounding")

SELECT_ALL = "all"
SELECT_IND = "IND"
SELECT_OOD = "OOD"

# Queries in each of MMEB-eval's datasets.
MMEB_EVAL_ROWS = 1_000


@dataclass(frozen=True)
class TrainSubset:
    """One folder of the training data; `rows` is its size before any cap (as the dataset's card rounds it)."""

    name: str
    meta_task: str
    query_modality: str
    target_modality: str
    rows: int


@dataclass(frozen=True)
class EvalDataset:
    """One evaluation dataset; `train_subset` is its training counterpart, or None if it is out-of-distribution."""

    name: str
    meta_task: str
    train_subset: str | None
    num_candidates: int

    @property
    def in_distribution(self) -> bool:
        """Whether a training subset of the same source exists."""
        return self.train_subset is not None

    @property
    def chance(self) -> float:
        """Precision@1 of a random guess."""
        return 1.0 / self.num_candidates


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's training subsets and evaluation datasets."""

    name: str
    train_subsets: tuple[TrainSubset, ...]
    eval_datasets: tuple[EvalDataset, ...]

    def train_subset(self, name: str) -> TrainSubset:
        """The training subset of that name; `InputError` if there is none."""
        by_name = {subset.name: subset for subset in self.train_subsets}
        return by_name[self._known(name, list(by_name), "training subset")]

    def dataset(self, name: str) -> EvalDataset:
        """The evaluation dataset of that name; `InputError` if there is none."""
        by_name = {dataset.name: dataset for dataset in self.eval_datasets}
        return by_name[self._known(name, list(by_name), "evaluation dataset")]

    def select(self, selections: Sequence[str]) -> tuple[str, ...]:
        """Expands "all", "IND", "OOD", meta-task names and dataset names into dataset names.

        Returns:
            Names of the chosen evaluation datasets, without duplicates, in the benchmark's order.

        Raises:
            InputError: A selection is none of these; the message proposes the nearest name.
        """
        chosen: set[str] = set()
        for selection in selections:
            members = [dataset.name for dataset in self.eval_datasets if self._matches(dataset, selection)]
            chosen.update(members or [self.dataset(selection).name])
        return tuple(dataset.name for dataset in self.eval_datasets if dataset.name in chosen)

    @staticmethod
    def _matches(dataset: EvalDataset, selection: str) -> bool:
        if selection == SELECT_IND:
            return dataset.in_distribution
        if selection == SELECT_OOD:
            return not dataset.in_distribution
        return selection in (SELECT_ALL, dataset.meta_task, dataset.name)

    def _known(self, name: str, names: list[str], kind: str) -> str:
        if name in names:
            return name
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise InputError(f"{name}: no such {kind} in {self.name}; did you mean {nearest}?")


def _train(meta_task: str, *subsets: tuple[str, str, str, int]) -> tuple[TrainSubset, ...]:
    return tuple(TrainSubset(name, meta_task, query, target, rows) for name, query, target, rows in subsets)


def _eval(meta_task: str, *datasets: tuple[str, str | None, int]) -> tuple[EvalDataset, ...]:
    return tuple(EvalDataset(name, meta_task, train_subset, candidates) for name, train_subset, candidates in datasets)


MMEB = Benchmark(
    name="MMEB",
    train_subsets=(
        *_train(
            "classification",
            ("ImageNet_1K", "I", "T", 100_000),
            ("N24News", "I+T", "T", 48_988),
            ("HatefulMemes", "I", "T", 8_500),
            ("VOC2007", "I", "T", 7_844),
            ("SUN397", "I", "T", 19_850),
        ),
        *_train(
            "vqa",
            ("OK-VQA", "I+T", "T", 9_009),
            ("A-OKVQA", "I+T", "T", 17_056),
            ("DocVQA", "I+T", "T", 39_463),
            ("InfographicsVQA", "I+T", "T", 23_946),
            ("ChartQA", "I+T", "T", 28_300),
            ("Visual7W", "I+T", "T", 70_000),
        ),
        *_train(
            "retrieval",
            ("VisDial", "T", "I", 123_300),
            ("CIRR", "I+T", "I", 26_116),
            ("VisualNews_t2i", "T", "I", 100_000),
            ("VisualNews_i2t", "I", "T", 100_000),
            ("MSCOCO_t2i", "T", "I", 100_000),
            ("MSCOCO_i2t", "I", "T", 113_500),
            ("NIGHTS", "I", "I", 15_900),
            ("WebQA", "T", "I+T", 17_200),
        ),
        *_train("grounding", ("MSCOCO", "I+T", "I", 100_000)),
    ),
    eval_datasets=(
        *_eval(
            "classification",
            ("ImageNet-1K", "ImageNet_1K", 1000),
            ("N24News", "N24News", 24),
            ("HatefulMemes", "HatefulMemes", 2),
            ("VOC2007", "VOC2007", 20),
            ("SUN397", "SUN397", 397),
            ("Place365", None, 365),
            ("ImageNet-A", None, 1000),
            ("ImageNet-R", None, 200),
            ("ObjectNet", None, 313),
            ("Country211", None, 211),
        ),
        *_eval(
            "vqa",
            ("OK-VQA", "OK-VQA", 1000),
            ("A-OKVQA", "A-OKVQA", 1000),
            ("DocVQA", "DocVQA", 1000),
            ("InfographicsVQA", "InfographicsVQA", 1000),
            ("ChartQA", "ChartQA", 1000),
            ("Visual7W", "Visual7W", 1000),
            ("ScienceQA", None, 1000),
            ("VizWiz", None, 1000),
            ("GQA", None, 1000),
            ("TextVQA", None, 1000),
        ),
        *_eval(
            "retrieval",
            ("VisDial", "VisDial", 1000),
            ("CIRR", "CIRR", 1000),
            ("VisualNews_t2i", "VisualNews_t2i", 1000),
            ("VisualNews_i2t", "VisualNews_i2t", 1000),
            ("MSCOCO_t2i", "MSCOCO_t2i", 1000),
            ("MSCOCO_i2t", "MSCOCO_i2t", 1000),
            ("NIGHTS", "NIGHTS", 1000),
            ("WebQA", "WebQA", 1000),
            ("FashionIQ", None, 1000),
            ("Wiki-SS-NQ", None, 1000),
            ("OVEN", None, 1000),
            ("EDIS", None, 1000),
        ),
        *_eval(
            "grounding",
            ("MSCOCO", "MSCOCO", 1000),
            ("RefCOCO", None, 1000),
            ("RefCOCO-Matching", None, 1000),
            ("Visual7W-Pointing", None, 1000),
        ),
    ),
)

# `python -m data_prep.mini_mmeb` makes it of handwritten digits and sample photographs, with the sizes given here.
MINI_MMEB = Benchmark(
    name="mini-MMEB",
    train_subsets=(
        *_train("classification", ("Digits_10", "I", "T", 1_500), ("Photos", "I", "T", 1_400)),
        *_train("vqa", ("PairVQA", "I+T", "T", 1_500), ("ColorVQA", "I+T", "T", 1_500)),
        *_train(
            "retrieval",
            ("Pairs_t2i", "T", "I", 1_500),
            ("Pairs_i2t", "I", "T", 1_500),
            ("SameDigit", "I", "I", 1_500),
            ("Recolor", "I+T", "I", 1_500),
            ("WebDigits", "T", "I+T", 1_500),
        ),
        *_train("grounding", ("MosaicGround", "I+T", "I", 1_500)),
    ),
    eval_datasets=(
        *_eval(
            "classification",
            ("Digits-10", "Digits_10", 10),
            ("Photos", "Photos", 14),
            ("Digits-Tilted", None, 10),
            ("Digits-Inverted", None, 10),
            ("Photos-Mirrored", None, 14),
        ),
        *_eval(
            "vqa",
            ("PairVQA", "PairVQA", 10),
            ("ColorVQA", "ColorVQA", 16),
            ("PairVQA-Reworded", None, 10),
            ("ColorVQA-Noisy", None, 16),
        ),
        *_eval(
            "retrieval",
            ("Pairs_t2i", "Pairs_t2i", 20),
            ("Pairs_i2t", "Pairs_i2t", 20),
            ("SameDigit", "SameDigit", 10),
            ("Recolor", "Recolor", 20),
            ("WebDigits", "WebDigits", 20),
            ("SameDigit-Tilted", None, 10),
            ("Recolor-Reworded", None, 20),
        ),
        *_eval("grounding", ("MosaicGround", "MosaicGround", 12), ("MosaicGround-Row", None, 12)),
    ),
)


def meta_task_of(subset: str) -> str | None:
    """Meta-task of a training subset of MMEB or mini-MMEB; None for any other subset."""
    for benchmark in (MMEB, MINI_MMEB):
        for known in benchmark.train_subsets:
            if known.name == subset:
                return known.meta_task
    return None


@dataclass(frozen=True)
class PublishedScores:
    """Precision@1 in percent: means over the datasets of each meta-task, over IND (20), OOD (16) and all 36."""

    classification: float
    vqa: float
    retrieval: float
    grounding: float
    ind: float
    ood: float
    overall: float


# The paper's main table; the VLM2Vec rows are Phi-3.5-V with 4 crops, trained at batch 1,024 for 2,000 steps.
PUBLISHED_SCORES = {
    "VLM2Vec full fine-tuning": PublishedScores(52.8, 50.3, 57.8, 72.3, 62.8, 47.4, 55.9),
    "VLM2Vec LoRA": PublishedScores(54.8, 54.9, 62.3, 79.5, 66.5, 52.0, 60.1),
    "UniIR (CLIP_SF)": PublishedScores(44.3, 16.2, 61.8, 65.3, 47.1, 41.7, 44.7),
    "CLIP fine-tuned on MMEB": PublishedScores(55.2, 19.7, 53.2, 62.2, 47.6, 42.8, 45.4),
    "CLIP zero-shot": PublishedScores(42.8, 9.1, 53.0, 51.8, 37.1, 38.7, 37.8),
}
