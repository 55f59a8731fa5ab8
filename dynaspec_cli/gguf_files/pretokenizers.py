"""How a byte-level vocabulary cuts a text before its merges run, by ``tokenizer.ggml.pre``.

The names are llama.cpp's; each stands for the expressions of the ``tokenizer.json`` that the model
came with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA3 = CONTRACTIONS + WORDS + r"|\p{N}{1,3}" + SYMBOLS + SPACES
QWEN2 = CONTRACTIONS + WORDS + r"|\p{N}" + SYMBOLS + SPACES
QWEN35 = (
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + SPACES
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"


def _cased(ending: str, digits: str) -> str:
    """Words that begin anew at a capital letter, as in o200k and Tekken."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    first = f"{lead}{UPPER}*{LOWER}+{ending}"
    second = f"|{lead}{UPPER}+{LOWER}*{ending}"
    return first + second + digits + SLASHES + SPACES


TEKKEN = _cased("", r"|\p{N}")
GPT4O = _cased(f"{CONTRACTIONS}?", r"|\p{N}{1,3}")
CJK = r"[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")


@dataclass(frozen=True)
class PreTokenizer:
    """``splits``: expressions whose matches stand alone, one after the other; ``gpt2``: GPT-2's
    own expression after them. ``whole_words``: a piece that is a token is not merged.
    ``add_bos``: what a file means that does not say whether texts begin with BOS."""

    splits: tuple[str, ...] = ()
    gpt2: bool = False
    whole_words: bool = False
    add_bos: bool = False

    def build(self) -> Any:
        """The ``tokenizers`` object."""
        from tokenizers import Regex, pre_tokenizers

        steps: list[Any] = [
            pre_tokenizers.Split(Regex(split), behavior="isolated") for split in self.splits
        ]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2))
        return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


_GPT2 = PreTokenizer(gpt2=True)
_DIGITS = PreTokenizer((r"\p{N}",), gpt2=True)
_LLAMA3 = PreTokenizer((LLAMA3,), whole_words=True, add_bos=True)
_LLAMA3_PLAIN = PreTokenizer((LLAMA3,))
_QWEN2 = PreTokenizer((QWEN2,))
_GPT4O = PreTokenizer((GPT4O,))
_DEEPSEEK3 = PreTokenizer((r"\p{N}{1,3}", CJK, DEEPSEEK3))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion"), _GPT2),
    **dict.fromkeys(("gigachat", "a.x-4.0", "mellum", "granite-docling"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _DIGITS),
    **dict.fromkeys(("codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1"), _LLAMA3),
    **dict.fromkeys(("pixtral", "midm-2.0", "lfm2"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _LLAMA3_PLAIN),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"), _QWEN2),
    **dict.fromkeys(("kormo", "f2llmv2", "grok-2"), _QWEN2),
    "qwen35": PreTokenizer((QWEN35,)),
    "tekken": PreTokenizer((TEKKEN,), whole_words=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), _GPT4O),
    "deepseek-coder": PreTokenizer(DEEPSEEK_CODER),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), _DEEPSEEK3),
}
