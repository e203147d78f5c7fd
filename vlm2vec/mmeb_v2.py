"""Facts of MMEB-V2's visual document and video sets: names, groups, repositories, instructions, metrics.

Source: "VLM2Vec-V2" (arXiv 2507.04590) and its evaluation code (TIGER-AI-Lab/VLM2Vec, branch main, November 2026).
"""

from __future__ import annotations

from dataclasses import dataclass

# Instructions before queries and pages of all visual document sets.
QUERY_INSTRUCTION = "Find a document image that matches the given query:"
PAGE_INSTRUCTION = "Understand the content of the provided document image."

VISDOC_GROUPS = ("ViDoRe-V1", "ViDoRe-V2", "VisRAG", "VisDoc-OOD")
# The leaderboard's metric for these sets, by its name in score files.
VISDOC_METRIC = "ndcg_linear@5"


@dataclass(frozen=True)
class VisdocSet:
    """One of the 24 visual document sets, in BEIR's format.

    Attributes:
        name: Name on the leaderboard.
        group: One of `VISDOC_GROUPS`.
        repositories: Repositories on the hub, the current one first.
        split: The split that is scored.
    """

    name: str
    group: str
    repositories: tuple[str, ...]
    split: str = "test"


_VIDORE_V1 = (
    "arxivqa_test_subsampled",
    "docvqa_test_subsampled",
    "infovqa_test_subsampled",
    "tabfquad_test_subsampled",
    "tatdqa_test",
    "shiftproject_test",
    "syntheticDocQA_artificial_intelligence_test",
    "syntheticDocQA_energy_test",
    "syntheticDocQA_government_reports_test",
    "syntheticDocQA_healthcare_industry_test",
)

VISDOC_SETS = (
    *(VisdocSet(f"ViDoRe_{stem.partition('_test')[0]}", "ViDoRe-V1", (f"vidore/{stem}_beir",)) for stem in _VIDORE_V1),
    VisdocSet("ViDoRe_esg_reports_human_labeled_v2", "ViDoRe-V2", ("vidore/esg_reports_human_labeled_v2",)),
    *(
        VisdocSet(f"ViDoRe_{stem}_v2_multilingual", "ViDoRe-V2", (f"vidore/{stem}_v2",))
        for stem in ("biomedical_lectures", "economics_reports", "esg_reports")
    ),
    *(
        VisdocSet(f"VisRAG_{stem}", "VisRAG", (f"openbmb/VisRAG-Ret-Test-{stem}",), "train")
        for stem in ("ArxivQA", "ChartQA", "MP-DocVQA", "SlideVQA", "InfoVQA", "PlotQA")
    ),
    VisdocSet("ViDoSeek-page", "VisDoc-OOD", ("VLM2Vec/ViDoSeek-page-fixed", "VLM2Vec/ViDoSeek-page")),
    VisdocSet("ViDoSeek-doc", "VisDoc-OOD", ("VLM2Vec/ViDoSeek",)),
    VisdocSet("MMLongBench-page", "VisDoc-OOD", ("VLM2Vec/MMLongBench-page-fixed", "VLM2Vec/MMLongBench")),
    VisdocSet("MMLongBench-doc", "VisDoc-OOD", ("VLM2Vec/MMLongBench-doc",)),
)


def visdoc_set(folder_name: str) -> VisdocSet | None:
    """The set in a folder, found by the set's or its repository's name; None if the name is unknown."""
    for each in VISDOC_SETS:
        if folder_name in (each.name, *(repository.rpartition("/")[2] for repository in each.repositories)):
            return each
    return None


@dataclass(frozen=True)
class VideoSet:
    """One of the 18 video sets; each clip is a folder of frames saved as JPEG.

    Attributes:
        name: Name on the leaderboard.
        group: One of `VIDEO_GROUPS`.
        repository: Repository on the hub that holds the rows.
        frames: Parent of the clips' folders, below `video-tasks/frames`.
        split: The split that is scored.
    """

    name: str
    group: str
    repository: str
    frames: str
    split: str = "test"


VIDEO_GROUPS = ("classification", "vqa", "retrieval", "moment retrieval")
# The leaderboard's metric for these sets, and the number of frames that it takes from each clip.
VIDEO_METRIC = "hit@1"
NUM_FRAMES = 8

VIDEO_SETS = (
    VideoSet("K700", "classification", "VLM2Vec/Kinetics-700", "video_cls/K700"),
    VideoSet("SmthSmthV2", "classification", "VLM2Vec/SmthSmthV2", "video_cls/SSv2"),
    *(
        VideoSet(name, "classification", f"VLM2Vec/{name}", f"video_cls/{name}")
        for name in ("HMDB51", "UCF101", "Breakfast")
    ),
    VideoSet("MVBench", "vqa", "VLM2Vec/MVBench", "video_qa/MVBench", "train"),
    VideoSet("Video-MME", "vqa", "VLM2Vec/Video-MME", "video_qa/Video-MME"),
    VideoSet("NExTQA", "vqa", "VLM2Vec/NExTQA", "video_qa/NExTQA"),
    VideoSet("EgoSchema", "vqa", "VLM2Vec/egoschema", "video_qa/EgoSchema"),
    VideoSet("ActivityNetQA", "vqa", "VLM2Vec/ActivityNetQA", "video_qa/ActivityNetQA"),
    *(
        VideoSet(name, "retrieval", f"VLM2Vec/{name}", f"video_ret/{name}")
        for name in ("DiDeMo", "MSR-VTT", "MSVD", "VATEX")
    ),
    VideoSet("YouCook2", "retrieval", "VLM2Vec/YouCook2", "video_ret/YouCook2", "val"),
    VideoSet("QVHighlight", "moment retrieval", "VLM2Vec/QVHighlight", "video_mret/QVHighlight"),
    VideoSet("Charades-STA", "moment retrieval", "VLM2Vec/Charades-STA", "video_mret/Charades_STA"),
    VideoSet("MomentSeeker", "moment retrieval", "VLM2Vec/MomentSeeker", "video_mret/MomentSeeker"),
)
