"""The kinds of drafter folders, in the order in which they are tried.

A kind says by config and tensors whether a folder is its own, never by the names of classes in it;
the first that says so loads it. Another package's kinds (entry points of the group
"dynaspec.drafters", each a ``DrafterKind``) are asked first; then folders of methods that are not
read here are refused by name.
"""

from __future__ import annotations

from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.drafters.kind import DrafterKind
from dynaspec_cli.drafters.options import check_known
from dynaspec_cli.drafters.other_methods import refuse_other_methods
from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.protocols import Drafter, Target
from dynaspec_cli.registry import Entry, Registry
from dynaspec_cli.target.tokenizer import TextTokenizer

KINDS: Registry[DrafterKind] = Registry(
    "kind of drafter",
    "--drafter",
    "dynaspec.drafters",
    {
        "dynaspec-eagle-1": Entry(
            "what dynaspec train-drafter makes", "dynaspec_cli.drafters.eagle:KIND"
        ),
        "speculators-eagle-3": Entry(
            "EAGLE-3 and 3.1 heads in folders of the speculators library",
            "dynaspec_cli.drafters.eagle3:SPECULATORS_KIND",
        ),
        "eagle-3": Entry("EAGLE-3 and 3.1 heads", "dynaspec_cli.drafters.eagle3:KIND"),
        "eagle-1": Entry("EAGLE-1, EAGLE-2 and HASS heads", "dynaspec_cli.drafters.eagle1:KIND"),
        "language-model": Entry(
            "a causal language model of the target's tokenizer",
            "dynaspec_cli.drafters.language_model:FOLDER_KIND",
        ),
    },
)


def kind_of(files: DrafterFiles) -> tuple[str, DrafterKind]:
    """The kind that a folder is of, with its name. Raises DynaSpecError where it is of none."""
    refused = False
    for name in KINDS.others_first():
        if KINDS[name].package is None and not refused:
            refuse_other_methods(files)
            refused = True
        if (kind := KINDS.load(name)).recognise(files):
            return name, kind
    known = "; ".join(f"{name} ({entry.description})" for name, entry in KINDS.items())
    raise DynaSpecError(
        f"drafter {files.folder}: its config.json and weights are of no kind that is known; "
        f"expected {known}"
    )


def load_folder(
    files: DrafterFiles, target: Target, tokenizer: TextTokenizer | None = None
) -> Drafter:
    """The drafter in ``files``, made for ``target`` and its ``tokenizer``."""
    name, kind = kind_of(files)
    check_known(files.options, kind.options, name)
    return kind.load(files, target, tokenizer)
