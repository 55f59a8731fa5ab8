"""What --method and --suite accept, and how they refuse the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_fakes import ChatCodec, FakeCodec

from dynaspec_cli.bench.prompts import CODE_INSTRUCTION, PromptFormat
from dynaspec_cli.bench.spec import ADAPTS, MethodSpec, parse_spec, parse_specs
from dynaspec_cli.bench.suites import Prompt, load_suite, parse_suite
from dynaspec_cli.errors import DynaSpecError, UsageError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("ar", MethodSpec("ar")),
        ("llama.cpp", MethodSpec("peer", peer="llama.cpp")),
        ("full+eagle2@16", MethodSpec("speculative", None, None, "full", None, "eagle2", 16)),
        ("dynaspec+dyspec", MethodSpec("speculative", None, None, "dynaspec", None, "dyspec")),
        (
            "dynaspec+dyspec@auto",
            MethodSpec("speculative", None, None, "dynaspec", None, "dyspec", ADAPTS),
        ),
        (
            "fr-spec@4096+chain@5",
            MethodSpec("speculative", None, None, "fr-spec", 4096, "chain", 5),
        ),
        (
            "org/draft-x:nanospec@512+auto@8",
            MethodSpec("speculative", None, "org/draft-x", "nanospec", 512, "auto", 8),
        ),
        (
            "./maps/freq.pt+ddd",
            MethodSpec("speculative", None, None, "./maps/freq.pt", None, "ddd"),
        ),
    ],
)
def test_spec_round_trip(text: str, spec: MethodSpec) -> None:
    assert parse_spec(text) == spec
    assert str(spec) == text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "ar, SHORTLIST"),
        ("full", "ar, SHORTLIST"),
        ("full+oak", "'oak'"),
        ("half+eagle2", "'half'"),
        ("full@9+eagle2", "full without a size"),
        ("fr-spec@0+eagle2", "'0'"),
        ("fr-spec@+eagle2", "got ''"),
        ("fr-spec@4k+eagle2", "'4k'"),
        ("full+eagle2@-1", "'-1'"),
        ("full+eagle2@0", "'0'"),
        (":full+eagle2", "drafter"),
        ("ar@3", "ar, SHORTLIST"),
    ],
)
def test_spec_refused_with_the_part_that_is_wrong(text: str, part: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_spec(text)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_method_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        parse_specs(["ar", "full+eagle2@4", "ar"])


def line(**changes: object) -> str:
    return json.dumps({"id": "a", "task": "qa", "turns": ["x"]} | changes)


@pytest.mark.parametrize(
    ("second", "part"),
    [
        ("{", "invalid JSON"),
        ("[1]", "got list"),
        (line(id=""), "'id'"),
        (line(id=7), "'id'"),
        (line(task=None), "'task'"),
        (line(id="b", task="all"), "'all'"),
        (line(id="b", turns=[]), "'turns'"),
        (line(id="b", turns="x"), "'turns'"),
        (line(id="b", turns=["x", " "]), "non-empty string"),
        (line(id="b", turns=[1]), "non-empty string"),
        (line(), "as in line 1"),
    ],
)
def test_malformed_lines_name_file_and_line(tmp_path: Path, second: str, part: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line() + "\n" + second + "\n")
    with pytest.raises(DynaSpecError) as error:
        load_suite(str(path))
    assert part in str(error.value)
    assert str(error.value).startswith("p.jsonl, line 2:")


def test_suite_files_not_utf8_empty_or_missing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"id": "\xff"}')
    half = tmp_path / "half.jsonl"
    half.write_text('{"id": "a", "task": "t", "turns": ["\\ud83d"]}\n')
    with pytest.raises(DynaSpecError, match="line 1: expected whole characters, got half of one"):
        load_suite(str(half))
    with pytest.raises(DynaSpecError, match="UTF-8"):
        load_suite(str(bad))
    bad.write_text("\n\n")
    with pytest.raises(DynaSpecError, match="found none"):
        load_suite(str(bad))
    with pytest.raises(DynaSpecError, match="found none there"):
        load_suite(str(tmp_path / "no.jsonl"))
    with pytest.raises(UsageError, match="--data-dir"):
        load_suite("spec-bench")
    with pytest.raises(DynaSpecError, match=r"spec_bench\.jsonl"):
        load_suite("spec-bench", tmp_path)
    with pytest.raises(UsageError, match="smoke"):
        load_suite("specbench", tmp_path)


def test_named_suites_are_found_with_underscores(tmp_path: Path) -> None:
    (tmp_path / "rare_tokens.jsonl").write_text(line())
    (tmp_path / "gsm8k_test.jsonl").write_text(line(id="g"))
    assert load_suite("rare-tokens", tmp_path).prompts[0].suite == "rare-tokens"
    assert load_suite("gsm8k", tmp_path).prompts[0].id == "g"


def test_a_line_separator_inside_a_string_does_not_end_a_line() -> None:
    suite = parse_suite(
        "s",
        json.dumps({"id": "a", "task": "qa", "turns": ["x\u2028y"]}, ensure_ascii=False).encode(),
        "s",
    )
    assert suite.prompts[0].turns == ("x\u2028y",)


def test_limit_is_per_task(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(line(id=f"{t}{i}", task=t) for i in range(3) for t in ("qa", "code")))
    suite = load_suite(str(path), limit=2)
    assert [p.id for p in suite.prompts] == ["qa0", "code0", "qa1", "code1"]
    with pytest.raises(UsageError, match="--limit"):
        load_suite(str(path), limit=0)


def test_smoke_suite_holds_all_tasks_and_scripts() -> None:
    suite = load_suite("smoke")
    assert len(suite.prompts) == 28
    assert set(suite.tasks) == {
        "conversation", "translation", "summarization", "qa", "math", "rag", "code",
        "rare_multilingual",
    }  # fmt: skip
    assert any(len(p.turns) == 2 for p in suite.prompts)
    from dynaspec_cli.bench.scripts import script_of

    written = {script_of(word) for p in suite.prompts for t in p.turns for word in t.split()}
    assert {"Latin", "Cyrillic", "CJK", "Arabic", "Devanagari", "Thai"} <= written


TWO = Prompt("s", "a", "conversation", ("Hi", "And?"))


def test_second_turn_keeps_the_first_answer_in_context() -> None:
    raw = PromptFormat(FakeCodec())
    assert raw.name == "raw"
    first = raw.context(TWO, [])
    assert first == FakeCodec().encode("Hi", start=True)
    assert raw.context(TWO, [[70, 71]]) == [
        *first,
        70,
        71,
        *FakeCodec().encode("\n\nAnd?", start=False),
    ]
    dialogue = PromptFormat(FakeCodec(), "dialogue")
    assert dialogue.context(TWO, [[70]]) == FakeCodec().encode(
        "User: Hi\n\nAssistant:F\n\nUser: And?\n\nAssistant:", start=True
    )
    chat = PromptFormat(ChatCodec(), system="Be brief")
    assert chat.name == "chat"
    assert chat.context(TWO, [[70]]) == FakeCodec().encode(
        "<system>Be brief<user>Hi<assistant>F<user>And?<assistant>", start=True
    )


def test_texts_to_go_on_with_get_no_frame_and_code_an_instruction() -> None:
    chat = PromptFormat(ChatCodec())
    text = Prompt("s", "a", "rare_math", ("Once",))
    assert chat.context(text, []) == FakeCodec().encode("Once", start=True)
    code = Prompt("s", "a", "code", ("def f",))
    assert chat.context(code, []) == FakeCodec().encode(
        f"<user>{CODE_INSTRUCTION}def f<assistant>", start=True
    )


def test_prompts_are_cut_to_their_first_tokens() -> None:
    long = Prompt("s", "a", "text", ("abcdef",))
    assert PromptFormat(FakeCodec(), "raw", 4).context(long, []) == [1, *map(ord, "abc")]
    asked = Prompt("s", "a", "qa", ("abcdef",))
    assert PromptFormat(ChatCodec(), "chat", 2).context(asked, []) == FakeCodec().encode(
        "<user>ab<assistant>", start=True
    )


def test_formats_that_the_model_cannot_do_are_refused() -> None:
    with pytest.raises(UsageError, match="chat template"):
        PromptFormat(FakeCodec(), "chat")
    with pytest.raises(UsageError, match="--system"):
        PromptFormat(FakeCodec(), "raw", system="x")
    with pytest.raises(UsageError, match="--max-prompt-tokens"):
        PromptFormat(FakeCodec(), "raw", 0)


def test_format_settings_hash_template_and_system_prompt() -> None:
    settings = PromptFormat(ChatCodec(), system="x").settings()
    assert settings["prompt_format"] == "chat"
    assert len(settings["chat_template_sha256"]) == 64
    assert settings["system_prompt_sha256"] == (
        "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    )
