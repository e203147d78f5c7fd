"""Training steps on one device: adapters in several variants, full fine-tuning, with and without compiled operators."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.bench import Bench, Setting, Variant, Work
from benchmarks.gpu.rows import Figures, Recorder, Section
from vlm2vec.contrastive.watch import Part
from vlm2vec.inputs.packing import DEFAULT_BATCH_TOKENS

LORA = "--bf16 --lora --lora_r 8 --lora_alpha 64 --gradient_checkpointing"
_ADAPTER = f"{LORA} --lora_dropout_on adapter"
_NO_DROPOUT = f"{LORA} --lora_dropout 0"
_PLAIN = f"{LORA} --lora_use_dora False"
FULL = "--bf16 --gradient_checkpointing"
_ALL_GRAPHS = 999
_LARGE = 32_768
_LARGEST = 131_072
_DORA = "DoRA, dropout 0.1"
_KEPT = "32,768 tokens, all graphs kept"
# Tokens per batch of `encode` and of scoring on a GPU.
_ENCODE_TOKENS = DEFAULT_BATCH_TOKENS

# The rows of a table are in the order of importance, with those of one model together.
SECTIONS: dict[str, tuple[str, dict[str, Variant]]] = {
    "lora": (
        "LoRA r = 8, bfloat16 base, activations recomputed",
        {
            "dora": Variant(f"{_DORA}, 8,192 tokens a chunk", LORA),
            "chunk_32768": Variant("... 32,768 tokens a chunk", LORA, chunk_tokens=_LARGE),
            "kept": Variant("... all graphs kept", LORA, keep_graphs=_ALL_GRAPHS),
            "cudnn": Variant("... cuDNN's attention allowed", LORA, cudnn_attention=True),
            "peft": Variant("... PEFT's DoRA layers", LORA, is_peft=True),
            "adapter": Variant("... dropout on the adapter's input alone", _ADAPTER),
            "no_dropout": Variant("... no dropout", _NO_DROPOUT),
            "plain": Variant("plain LoRA, dropout 0.1", _PLAIN),
        },
    ),
    "compiled": (
        "LoRA r = 8, compiled elementwise operators",
        {
            "dora_compiled": Variant(f"{_DORA}, 8,192 tokens a chunk", LORA, is_compiled=True),
            "dora_large": Variant(f"{_DORA}, 32,768 tokens a chunk", LORA, _LARGE, is_compiled=True),
            "dora_kept": Variant(f"{_DORA}, {_KEPT}", LORA, _LARGE, _ALL_GRAPHS, is_compiled=True),
            "dora_largest": Variant(f"{_DORA}, 131,072 tokens", LORA, _LARGEST, is_compiled=True),
            "dora_largest_kept": Variant(
                f"{_DORA}, 131,072 tokens, all graphs kept", LORA, _LARGEST, _ALL_GRAPHS, is_compiled=True
            ),
            "adapter_kept": Variant(
                f"{_DORA} on the adapter's input alone, {_KEPT}",
                _ADAPTER,
                _LARGE,
                _ALL_GRAPHS,
                is_compiled=True,
            ),
            "plain_kept": Variant(f"plain LoRA, dropout 0.1, {_KEPT}", _PLAIN, _LARGE, _ALL_GRAPHS, is_compiled=True),
            "no_dropout_kept": Variant(
                f"DoRA without dropout, {_KEPT}", _NO_DROPOUT, _LARGE, _ALL_GRAPHS, is_compiled=True
            ),
        },
    ),
    "full": (
        "All weights, bfloat16, activations recomputed: forward and backward alone",
        {
            "compute": Variant("8,192 tokens a chunk", FULL, work=Work.COMPUTE),
            "compute_large": Variant("32,768 tokens a chunk", FULL, _LARGE, work=Work.COMPUTE),
            "compute_compiled": Variant("compiled, 8,192 tokens", FULL, is_compiled=True, work=Work.COMPUTE),
            "compute_compiled_large": Variant(
                "compiled, 32,768 tokens", FULL, _LARGE, is_compiled=True, work=Work.COMPUTE
            ),
        },
    ),
    "steps": (
        "All weights, bfloat16, activations recomputed: whole steps",
        {
            "step": Variant("compiled, 32,768 tokens a chunk", FULL, _LARGE, is_compiled=True),
            "step_kept": Variant(f"compiled, {_KEPT}", FULL, _LARGE, _ALL_GRAPHS, is_compiled=True),
            "step_offload": Variant(
                "compiled, 32,768, optimizer on the host", FULL, _LARGE, is_compiled=True, engine="zero2_offload"
            ),
        },
    ),
    "encode": (
        "Encoding: forward alone",
        {
            "encode": Variant("16,384 tokens a batch", FULL, _ENCODE_TOKENS, work=Work.ENCODE),
            "encode_compiled": Variant(
                "compiled, 16,384 tokens a batch", FULL, _ENCODE_TOKENS, is_compiled=True, work=Work.ENCODE
            ),
        },
    ),
}


def cells_of(figures: Figures) -> list[str]:
    """The cells of one row."""
    rest = 1 - figures[Part.PASS_1.value] - figures[Part.PASS_2.value]
    memory = f"{figures['peak_gib']:.1f}" if figures["peak_gib"] else "-"
    planned = f" ({figures['plan_gib']:.1f})" if figures["plan_gib"] else ""
    return [
        f"{figures['seconds']:.2f}",
        f"{figures['pairs_per_second']:.1f}",
        f"{figures['items_per_second']:.1f}",
        f"{figures['tokens_per_second']:,.0f}",
        f"{figures['mfu']:.1%}" if figures["mfu"] else "-",
        f"{figures['run_tflops']:.3g}",
        memory + planned,
        str(figures["num_chunks"]),
        f"{figures[Part.PASS_1.value]:.0%}, {figures[Part.PASS_2.value]:.0%}, {rest:.0%}",
    ]


COLUMNS = (
    *("s a step", "pairs/s", "items/s", "tokens/s", "MFU", "TFLOP/s on what runs", "peak GiB (plan)"),
    *("chunks", "pass 1, pass 2, rest"),
)


def run(recorder: Recorder, setting: Setting, section: str, rows: Sequence[str] = ()) -> None:
    """One row per variant, of those with these names or of all.

    The model is built once for consecutive variants that can share it, and again after a failure.
    """
    title, variants = SECTIONS[section]
    recorder.begin(Section(title, COLUMNS, cells_of))
    bench: Bench | None = None
    for variant in [variants[name] for name in rows or variants]:
        if bench is not None and bench.kind != variant.kind:
            bench.close()
            bench = None

        def measure(variant: Variant = variant) -> Figures:
            nonlocal bench
            bench = bench or Bench(variant, setting)
            return bench.measure(variant)

        if not recorder.row(variant.what, measure) and bench is not None:
            bench.close()
            bench = None
    if bench is not None:
        bench.close()
