"""The settings of the papers in one word. A flag given beside a preset overrides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from dynaspec_cli.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """``max_new_tokens`` by suite; None leaves the default. ``sampling``: as the option of that
    name; the papers decode greedily, which is the command's default too.

    ``source`` says where each number stands; ``differs`` what cannot be the same here.
    """

    summary: str
    source: str
    differs: str
    suites: tuple[str, ...]
    methods: tuple[str, ...]
    max_new_tokens: Mapping[str, int]
    tree_depth: int
    tree_width: int
    tree_threshold: float | None = None
    max_prompt_tokens: int | None = None
    repeats: int = 1
    warmup: int = 1
    sampling: str = "options"


_EAGLE_NODES = 59  # total_token 60 counts the root

PRESETS: dict[str, Preset] = {
    "spec-bench": Preset(
        summary="480 questions of six tasks, greedy, 1,024 new tokens, three runs",
        source="Spec-Bench repository, evaluation/eval.py and speed.py; its EAGLE arm: "
        "total_token 60, depth 5 (six levels), top_k 10; three warm-up runs",
        differs="tokens/s are pooled and without prefill; the repository's own ratio is in the "
        "summary as speedup_spec_bench. It runs float16 on a GPU",
        suites=("spec-bench",),
        methods=("ar", f"full+eagle2@{_EAGLE_NODES}", f"dynaspec+eagle2@{_EAGLE_NODES}"),
        max_new_tokens={"spec-bench": 1024},
        tree_depth=6,
        tree_width=10,
        repeats=3,
        warmup=3,
    ),
    "eagle2-paper": Preset(
        summary="EAGLE-2's tree for 7B and 8B targets: 60 nodes with the root, depth 6, 10 a level",
        source="EAGLE-2 (arXiv 2406.16858), section on settings, and SafeAILab/EAGLE: 60 tokens, "
        "depth 6, 10 nodes; its evaluation scripts generate 512 tokens in float16, greedy",
        differs="MT-bench is Spec-Bench's conversation task; Alpaca is not among the suites",
        suites=("spec-bench", "human-eval", "gsm8k", "cnn-dailymail"),
        methods=("ar", f"full+eagle2@{_EAGLE_NODES}", "full+chain@6"),
        max_new_tokens={"spec-bench": 512, "human-eval": 512, "gsm8k": 512, "cnn-dailymail": 512},
        tree_depth=6,
        tree_width=10,
    ),
    "fr-spec-paper": Preset(
        summary="fixed lists of 8k to 64k tokens under EAGLE-2's tree of 60",
        source="FR-Spec (arXiv 2502.14856), section 4 and Tables 1 and 2: Spec-Bench 1,024 new "
        "tokens, HumanEval and GSM8K 512, greedy, float16; repository: num_iter 6, topk 10, tree "
        "60",
        differs="the lists are counted on the corpus of the bundle in use, not on SlimPajama",
        suites=("spec-bench", "human-eval", "gsm8k"),
        methods=(
            "ar",
            f"full+eagle2@{_EAGLE_NODES}",
            *(f"fr-spec@{n}+eagle2@{_EAGLE_NODES}" for n in (8192, 16384, 32768, 65536)),
        ),
        max_new_tokens={"spec-bench": 1024, "human-eval": 512, "gsm8k": 512},
        tree_depth=6,
        tree_width=10,
    ),
    "dynaspec-paper": Preset(
        summary="the router's shortlist of 27k tokens against fr-spec of 32k and the full "
        "vocabulary",
        source="DynaSpec (arXiv 2510.13847): seven tasks (Spec-Bench's six and HumanEval), "
        "EAGLE-2 drafter, about 27k of 128k tokens active against FR-Spec's 32k (as its per-task "
        "numbers were published by others)",
        differs="the paper's shortlist is the router's alone, this project's dynaspec mixes core, "
        "context and router; tree size, temperature and length are not published, the family's are "
        "taken: 60 nodes with the root, greedy, 1,024 (HumanEval 512) new tokens",
        suites=("spec-bench", "human-eval"),
        methods=(
            "ar",
            f"full+eagle2@{_EAGLE_NODES}",
            f"fr-spec@32768+eagle2@{_EAGLE_NODES}",
            f"dynaspec@27000+eagle2@{_EAGLE_NODES}",
        ),
        max_new_tokens={"spec-bench": 1024, "human-eval": 512},
        tree_depth=6,
        tree_width=10,
    ),
    "dyspec-paper": Preset(
        summary="trees of 64 nodes: dyspec, sequoia, specinfer; 128 prompt and 128 new tokens",
        source="DySpec (arXiv 2410.11744), section 4.1 and Tables 1 to 3: C4, OpenWebText, "
        "CNN/DailyMail, GSM8K; prompts of 128 tokens, 128 new tokens, target temperature 0 (or "
        "0.6: --temperature 0.6)",
        differs="its drafter is a small language model that samples at 0.6 also for a greedy "
        "target; here greedy drafts are the most probable tokens",
        suites=("c4", "openwebtext", "cnn-dailymail", "gsm8k"),
        methods=("ar", "full+dyspec@64", "full+sequoia@64", "full+specinfer@64", "full+eagle2@64"),
        max_new_tokens={"c4": 128, "openwebtext": 128, "cnn-dailymail": 128, "gsm8k": 128},
        tree_depth=16,
        tree_width=16,
        tree_threshold=1 / 64,
        max_prompt_tokens=128,
    ),
    "recommended-sampling": Preset(
        summary="sampled as the model's own generation_config.json recommends: the default, its "
        "tree on other lists, and trees of best tokens",
        source="this project: the methods of benchmarks/spec_bench.sh that sampled text is about "
        "(docs/results), --sampling model",
        differs="nothing; the model says temperature, top-k, top-p and min-p (Gemma 3: 1, 64, "
        "0.95, off), and a model without such a file is refused",
        suites=("spec-bench", "human-eval"),
        methods=(
            "ar",
            "full+eagle2@16",
            "nanospec+dyspec@8",
            "dynaspec@2048+eagle2@16",
            "dynaspec@1024+dyspec@8",
        ),
        max_new_tokens={"spec-bench": 96, "human-eval": 96},
        tree_depth=6,
        tree_width=4,
        sampling="model",
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of that name; UsageError lists them."""
    if name not in PRESETS:
        raise UsageError(f"--preset: expected {', '.join(PRESETS)}, got '{name}'")
    return PRESETS[name]


def describe_presets() -> str:
    """What ``--list-presets`` prints."""
    blocks = []
    for name, preset in PRESETS.items():
        blocks.append(
            f"{name}: {preset.summary}\n"
            f"  suites   {', '.join(preset.suites)}\n"
            f"  methods  {', '.join(preset.methods)}\n"
            f"  source   {preset.source}\n"
            f"  differs  {preset.differs}\n"
        )
    return "\n".join(blocks)


def presets_json() -> dict[str, dict[str, object]]:
    """The same for ``--json``: every field by the preset's name."""
    return {
        name: {field.name: getattr(preset, field.name) for field in fields(preset)}
        for name, preset in PRESETS.items()
    }
