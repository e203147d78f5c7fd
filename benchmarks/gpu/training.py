"""Training steps on one device: adapters in several variants, full fine-tuning, with and without compiled operators."""

from __future__ import annotations

from benchmarks.gpu.bench import Bench, Setting, Variant
from benchmarks.gpu.rows import Figures, Recorder, Section
from vlm2vec.contrastive.watch import Part

LORA = "--bf16 --lora --lora_r 8 --lora_alpha 64 --gradient_checkpointing"
FULL = "--bf16 --gradient_checkpointing"
_ALL_GRAPHS = 999


SECTIONS: dict[str, tuple[str, dict[str, Variant]]] = {
    "lora": (
        "LoRA r = 8, bfloat16 base, activations recomputed",
        {
            "dora": Variant("DoRA, dropout 0.1, 8,192 tokens a chunk", LORA),
            "chunk_32768": Variant("... 32,768 tokens a chunk", LORA, chunk_tokens=32_768),
            "kept": Variant("... all graphs kept", LORA, keep_graphs=_ALL_GRAPHS),
            "cudnn": Variant("... cuDNN's attention allowed", LORA, cudnn_attention=True),
            "peft": Variant("... PEFT's DoRA layers", LORA, is_peft=True),
            "adapter": Variant("... dropout on the adapter's input alone", f"{LORA} --lora_dropout_on adapter"),
            "no_dropout": Variant("... no dropout", f"{LORA} --lora_dropout 0"),
            "plain": Variant("plain LoRA, dropout 0.1", f"{LORA} --lora_use_dora False"),
        },
    ),
    "full": (
        "All weights, bfloat16, activations recomputed",
        {
            "compute": Variant("forward and backward alone, 8,192 tokens a chunk", FULL, with_optimizer=False),
            "compute_32768": Variant("... 32,768 tokens", FULL, chunk_tokens=32_768, with_optimizer=False),
            "step": Variant("whole step, 32,768 tokens a chunk", FULL, chunk_tokens=32_768),
        },
    ),
    "compiled": (
        "Compiled elementwise operators",
        {
            "dora_compiled": Variant("DoRA, dropout 0.1, 8,192 tokens a chunk", LORA, is_compiled=True),
            "adapter_compiled": Variant(
                "... dropout on the adapter's input alone", f"{LORA} --lora_dropout_on adapter", is_compiled=True
            ),
            "compute_compiled": Variant(
                "all weights, forward and backward alone, 8,192 tokens", FULL, is_compiled=True, with_optimizer=False
            ),
        },
    ),
}


def cells_of(figures: Figures) -> list[str]:
    """One row of a table."""
    rest = 1 - figures[Part.PASS_1.value] - figures[Part.PASS_2.value]
    memory = f"{figures['peak_gib']:.1f}" if figures["peak_gib"] else "-"
    planned = f" ({figures['plan_gib']:.1f})" if figures["plan_gib"] else ""
    return [
        f"{figures['seconds']:.2f}",
        f"{figures['pairs_per_second']:.1f}",
        f"{figures['tokens_per_second']:,.0f}",
        f"{figures['mfu']:.1%}" if figures["mfu"] else "peak unknown",
        f"{figures['run_tflops']:.3g}",
        memory + planned,
        f"{figures[Part.PASS_1.value]:.0%}, {figures[Part.PASS_2.value]:.0%}, {rest:.0%}",
    ]


COLUMNS = ("s a step", "pairs/s", "tokens/s", "MFU", "TFLOP/s on what runs", "peak GiB (plan)", "pass 1, pass 2, rest")


def run(recorder: Recorder, setting: Setting, section: str) -> None:
    """One row a variant; the model is built once for all that can use it, and anew after a failure."""
    title, variants = SECTIONS[section]
    recorder.begin(Section(title, COLUMNS, cells_of))
    bench: Bench | None = None
    for variant in variants.values():
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
