"""Lookup against plain searches of the text."""

from __future__ import annotations

import math
import random
import time

import pytest
import torch

from dynaspec_cli.drafters.lookup.automaton import COUNTED, ROOT, SuffixAutomaton
from dynaspec_cli.drafters.lookup.continuations import continuations
from dynaspec_cli.drafters.lookup.drafter import FLOOR, WIDTH, LookupDrafter, children
from dynaspec_cli.drafters.lookup.reliability import Reliability
from dynaspec_cli.protocols import Committed, Frontier


def occurrences(text: list[int], piece: list[int]) -> list[int]:
    """Ends of ``piece`` in ``text``."""
    n = len(piece)
    return [i + n for i in range(len(text) - n + 1) if text[i : i + n] == piece]


def longest_match(text: list[int]) -> int:
    """Length of the longest suffix that also ends earlier."""
    for length in range(len(text) - 1, 0, -1):
        if len(occurrences(text, text[-length:])) > 1:
            return length
    return 0


@pytest.mark.parametrize("alphabet", [1, 2, 3, 20])
def test_automaton_against_search(alphabet):
    draw = random.Random(alphabet)
    for _ in range(12):
        text, automaton = [], SuffixAutomaton()
        for _ in range(draw.randint(1, min(COUNTED, 40))):
            text.append(draw.randrange(alphabet))
            automaton.append(text[-1])
            state, length = automaton.match, longest_match(text)
            assert automaton.length[state] == length
            # The contexts that are asked: the match, then every suffix that more tokens followed.
            while state > ROOT:
                context = text[len(text) - automaton.length[state] :]
                followers: dict[int, list[int]] = {}
                for end in occurrences(text, context):
                    if end < len(text):
                        followers.setdefault(text[end], []).append(end + 1)
                following = automaton.next[state]
                assert set(following) == set(followers)
                for token, ends in followers.items():
                    assert automaton.count[following[token]] == len(ends)
                    assert automaton.last[following[token]] == max(ends)
                state = automaton.link[state]
        assert len(automaton.next) <= 2 * len(text) + 1


def propose(prompt: list[int], *more: list[int]):
    """Candidates of the root after a prompt and later settled tokens, and the state."""
    drafter = LookupDrafter()
    state = drafter.begin(torch.tensor(prompt), 1000)
    output = None
    for tokens in (prompt[1:], *more):
        output = drafter.extend(state, Committed(None, torch.arange(0), torch.tensor(tokens)))
    return drafter, state, output


def test_proposals_follow_the_longest_match_and_then_shorter_ones():
    prompt = [1, 2, 3, 4, 9, 2, 3, 5, 9, 1, 2, 3]  # "1 2 3" was followed by 4, "2 3" also by 5
    _, state, output = propose(prompt)
    assert output.ids.tolist() == [[4, 5]]
    three, two = state.reliability.chance(3), state.reliability.chance(2)
    assert output.log_q[0].exp().tolist() == pytest.approx([three, (1 - three) * two])


def test_equal_counts_go_to_the_later_and_shares_follow_counts():
    _, state, output = propose([7, 1, 7, 2, 7, 1, 7, 3, 7])
    chance = state.reliability.chance(1)
    assert output.ids.tolist() == [[1, 3, 2]]
    assert output.log_q[0].exp().tolist() == pytest.approx([chance / 2, chance / 4, chance / 4])


def test_a_frontier_goes_on_where_its_tokens_lead():
    drafter, state, root = propose([1, 2, 3, 4, 5, 6, 8, 1, 2, 3])
    assert root.ids.tolist() == [[4]]
    frontier = Frontier(torch.tensor([4]), torch.tensor([-1]), torch.tensor([0]))
    below = drafter.step(state, frontier)
    assert below.ids.tolist() == [[5]]
    # The context has grown by the drafted token, and its class of reliability with it.
    assert float(below.log_q.exp()) == pytest.approx(state.reliability.chance(4))


def test_a_repetition_is_continued_around_its_end():
    drafter, state, output = propose([1, 2, 3] * 4)
    tokens, row = [], output
    for _ in range(9):
        tokens.append(int(row.ids[0, 0]))
        row = drafter.step(
            state, Frontier(torch.tensor(tokens[-1:]), torch.tensor([-1]), torch.tensor([0]))
        )
    assert tokens == [1, 2, 3] * 3


def test_nothing_is_proposed_where_nothing_matches():
    _, _, output = propose([1, 2, 3, 4, 5])
    assert output.ids.shape == (1, 0)
    assert output.size == 0


def test_proposals_are_few_distinct_and_worth_a_row():
    draw = random.Random(5)
    prompt = [draw.randrange(6) for _ in range(400)]
    _, _, output = propose(prompt)
    ids = output.ids[0].tolist()
    assert len(ids) == len(set(ids)) <= 2 * WIDTH
    chances = output.log_q[0].exp()
    assert float(chances.min()) >= FLOOR
    assert chances.tolist() == sorted(chances.tolist(), reverse=True)
    assert float(chances.sum()) <= 1 + 1e-6


def test_reliability_learns_from_every_settled_token_and_forgets():
    reliability = Reliability()
    before = reliability.chance(5)
    for _ in range(200):
        reliability.observe(5, False)
    assert reliability.chance(5) < 0.02 < before
    assert reliability.chance(20) > 0.5  # another class
    for _ in range(100):
        reliability.observe(6, True)  # the same class as 5
    assert reliability.chance(5) > 0.9


def test_a_match_that_misleads_loses_its_place():
    # After "9" something new comes every time: a match of one token says nothing here.
    prompt = [token for i in range(60) for token in (9, 100 + i)]
    _, state, _ = propose([*prompt, 9])
    assert state.reliability.chance(1) < 0.05
    assert math.isclose(state.reliability.chance(30), 0.9)


@pytest.mark.slow
def test_a_proposal_takes_no_longer_in_a_long_text(capsys):
    """Printed, not asserted: microseconds of a step at 300 and at 30,000 tokens."""
    draw = random.Random(1)
    for length in (300, 30_000):
        prompt = [int(draw.paretovariate(0.8)) % 20_000 for _ in range(length)]
        drafter, state, _ = propose(prompt)
        times = []
        for _ in range(300):
            committed = Committed(None, torch.arange(0), torch.tensor([prompt[draw.randrange(99)]]))
            begun = time.perf_counter()
            drafter.extend(state, committed)
            times.append(time.perf_counter() - begun)
        with capsys.disabled():
            print(f"\n{length} tokens: {1e6 * sorted(times)[150]:.0f} microseconds a step")


def best_tree(text, size, depth):
    """The ``size`` most probable nodes by trying every path, children as one step gives them."""
    _, state, _ = propose(text)
    nodes = [((), state.root)]
    for path, node in nodes:
        if len(path) < depth:
            below = children(state, node)
            nodes += [((*path, token), child) for token, child in below.items()]
    ranked = sorted(nodes[1:], key=lambda item: (-item[1].chance, len(item[0])))
    return {path: node.chance for path, node in ranked[:size]}


@pytest.mark.parametrize("size", [1, 3, 8, 30])
def test_continuations_are_the_most_probable_tree(size):
    draw = random.Random(size)
    for _ in range(10):
        prompt = [draw.randrange(4) for _ in range(60)]
        _, state, _ = propose(prompt)
        found = continuations(state, size, 4)
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(found.tokens, found.parents, strict=True):
            assert parent < len(paths)
            paths.append((*(() if parent < 0 else paths[parent]), token))
        assert len(set(paths)) == len(paths)
        wanted = best_tree(prompt, size, 4)
        assert found.chances == tuple(sorted(found.chances, reverse=True))
        assert list(found.chances) == pytest.approx(sorted(wanted.values(), reverse=True))
        assert found.expected == pytest.approx(sum(wanted.values()))
        some = found.first(3, floor=0.2)
        assert len(some.tokens) == sum(chance >= 0.2 for chance in found.chances[:3])
