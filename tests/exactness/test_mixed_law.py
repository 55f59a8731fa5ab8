"""Trees whose nodes have points and draws: a lookup's tokens tried before a drafter's draws."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from exact_toys import Context, Law, Script, ToyModel, distance, outcomes, target_law

from dynaspec_cli.config import SamplingConfig
from dynaspec_cli.ops.draw import draw_rows
from dynaspec_cli.protocols import DraftTree
from dynaspec_cli.sampling import verify as verification
from dynaspec_cli.sampling.processors import probabilities
from dynaspec_cli.sampling.verify import Draw, NodeDraft, SampledDrafts, verify_sampled

SAMPLING = SamplingConfig(temperature=1.0)
EXACT = 1e-12


class MixedTree:
    """Grows rows below a context: at each expanded row ``points`` tokens (a function of the
    context), then ``draws`` from q over the toy's shortlist. A token that is both has one row."""

    def __init__(
        self,
        model: ToyModel,
        points: int,
        draws: int,
        replacement: bool,
        traversal: bool = False,
    ) -> None:
        self.model, self.points, self.draws = model, points, draws
        self.replacement, self.traversal = replacement, traversal

    def point_tokens(self, context: Context) -> list[int]:
        """Probable tokens of another noise: some in the shortlist, some not."""
        order = torch.argsort(self.model._normal(7, context), descending=True)
        return order[: self.points].tolist()

    def draft(self, context: Context, levels: int, script: Script) -> DraftTree:
        tokens, parents, contexts = [context[-1]], [-1], [context]
        nodes: dict[int, NodeDraft] = {}
        level = [0]
        for _ in range(levels):
            below = []
            for row in level:
                ids = self.model.shortlist([contexts[row]])
                logits = self.model.draft_logits(contexts[row])[ids]
                q = probabilities(logits[None], SAMPLING)[0]
                of_token: dict[int, int] = {}

                def child(token: int, row: int = row, of_token: dict = of_token) -> int:
                    if token not in of_token:
                        of_token[token] = len(tokens)
                        tokens.append(token)
                        parents.append(row)
                        contexts.append((*contexts[row], token))
                    return of_token[token]

                points = tuple(child(token) for token in self.point_tokens(contexts[row]))
                counts = [self.draws]
                uniforms = script.uniforms(lambda q=q: q[None], counts, self.replacement)
                drawn = draw_rows(q[None], uniforms, counts, None, self.replacement)[0].tolist()
                drawn = [column for column in drawn if column >= 0]
                draws = tuple(Draw(column, child(int(ids[column]))) for column in drawn)
                nodes[row] = NodeDraft(ids, q, draws, points)
                below += of_token.values()
            level = below
        drafts = SampledDrafts(nodes, self.replacement, traversal=self.traversal)
        return DraftTree(torch.tensor(tokens), torch.tensor(parents), drafts)


def emitted_law(mixed: MixedTree, levels: int, length: int) -> Law:
    """The law of the first ``length`` tokens: one step, then plain decoding."""
    model, law = mixed.model, {}

    def step(script: Script) -> Context:
        tree = mixed.draft((0,), levels, script)
        contexts: list[Context] = [(0,)]
        for token, parent in list(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True))[
            1:
        ]:
            contexts.append((*contexts[parent], token))
        verdict = verify_sampled(tree, lambda row: model.target(contexts[row], SAMPLING), script)
        rows = verdict.path.tolist()
        assert all(int(tree.parents[b]) == a for a, b in pairwise(rows))
        return (*contexts[rows[-1]][1:], verdict.bonus)

    for emitted, probability in outcomes(step):
        head = emitted[:length]
        rest = target_law(model, (0, *head), SAMPLING, length - len(head))
        for tail, tail_probability in rest.items():
            key = (*head, *tail)
            law[key] = law.get(key, 0.0) + probability * tail_probability
    return law


CASES = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 0)]


@pytest.mark.parametrize("traversal", [False, True])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize(("points", "draws"), CASES)
@pytest.mark.parametrize("seed", [3, 8])
def test_one_level(points: int, draws: int, replacement: bool, seed: int, traversal: bool) -> None:
    """Four tokens, a shortlist of three: points inside and outside it, drawn again or not."""
    model = ToyModel(vocab=4, shortlist_size=3, seed=seed)
    law = emitted_law(MixedTree(model, points, draws, replacement, traversal), 1, 2)
    assert distance(law, target_law(model, (0,), SAMPLING, 2)) < EXACT


@pytest.mark.parametrize("traversal", [False, True])
@pytest.mark.parametrize("replacement", [False, True])
def test_two_levels(replacement: bool, traversal: bool) -> None:
    model = ToyModel(vocab=3, shortlist_size=2, seed=5)
    law = emitted_law(MixedTree(model, 1, 1, replacement, traversal), 2, 3)
    assert distance(law, target_law(model, (0,), SAMPLING, 3)) < EXACT


def test_the_toys_hold_every_kind_of_point() -> None:
    """In the shortlist, outside it, and drawn again."""
    model = ToyModel(vocab=4, shortlist_size=3, seed=3)
    mixed = MixedTree(model, 2, 1, False)
    listed = set(model.shortlist([(0,)]).tolist())
    points = set(mixed.point_tokens((0,)))
    assert points & listed
    assert points - listed or set(MixedTree(model, 3, 1, False).point_tokens((0,))) - listed


@pytest.mark.parametrize("wrong", ["never", "kept", "as draws"])
def test_mistakes_are_seen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rejected point not removed; a point accepted as though it had been drawn. Never accepting a
    point is no mistake: it only accepts less."""
    model = ToyModel(vocab=4, shortlist_size=3, seed=8)
    original = verification.sibling_chances

    def changed(p, tokens, columns, *rest):
        chances, residual = original(p, tokens, columns, *rest)
        points = len(tokens) - len(columns)
        if wrong == "kept":
            residual = original(p, tokens[points:], columns, *rest)[1]
        elif wrong == "as draws":
            chances[:points] = (p[tokens[:points]] / 0.5).clamp(max=1)
        else:
            chances, residual = original(p, tokens[points:], columns, *rest)
            chances = torch.cat([torch.zeros(points, dtype=chances.dtype), chances])
        return chances, residual

    monkeypatch.setattr(verification, "sibling_chances", changed)
    error = distance(
        emitted_law(MixedTree(model, 2, 1, False), 1, 2), target_law(model, (0,), SAMPLING, 2)
    )
    assert error < EXACT if wrong == "never" else error > 1e-4
