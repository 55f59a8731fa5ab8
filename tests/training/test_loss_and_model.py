"""The drafter's loss and module against plain formulas, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dynaspec_cli.target.load import load_transformers
from dynaspec_cli.training.evaluate import module_unroll
from dynaspec_cli.training.initialise import drafter_config, from_target
from dynaspec_cli.training.loss import (
    gram_matrix,
    quadratic_form,
    soft_loss,
    softmax_rows,
    unrolled_loss,
)
from dynaspec_cli.training.loss_config import LossConfig
from dynaspec_cli.training.model import attend, rms_norm


def test_gram_matrix_is_the_variance_of_logit_errors():
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(40, 6, generator=generator)
    counts = torch.randint(1, 50, (40,), generator=generator)
    error = torch.randn(6, generator=generator)
    pi = (counts + 1).float() ** 0.75
    pi /= pi.sum()
    logits = head @ error
    variance = (pi * (logits - (pi * logits).sum()) ** 2).sum()
    torch.testing.assert_close(
        error @ gram_matrix(head, counts) @ error, variance, rtol=1e-4, atol=1e-5
    )


def test_loss_is_least_at_the_target_and_ignores_void_rows():
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(1, 5, 6, generator=generator)
    columns = torch.randn(9, 6, generator=generator)
    weight = torch.ones(1, 5)
    config = LossConfig(gram=0.0)
    best, values = unrolled_loss([truth, truth], truth, columns, None, weight, config)
    entropy = torch.distributions.Categorical(logits=truth @ columns.t()).entropy()[0]
    assert values == pytest.approx([float(entropy.mean()), float(entropy[1:].mean())], rel=1e-5)
    void = truth.clone()
    void[:, 0] = 100.0
    same, _ = unrolled_loss([truth, void], truth, columns, None, weight, config)
    assert float(same) == pytest.approx(float(best))
    worse, _ = unrolled_loss([truth + 0.5, truth], truth, columns, None, weight, config)
    assert float(worse) > float(best)


@pytest.mark.parametrize("variation", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rows", [7, 77])
def test_loss_has_the_gradient_of_the_plain_formula(rows, variation):
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(rows, 6, generator=generator, requires_grad=True)
    columns = torch.randn(9, 6, generator=generator)
    p = torch.softmax(torch.randn(rows, 9, generator=generator), -1)
    weight = torch.rand(rows, generator=generator)
    weight[::5] = 0
    log_q = torch.log_softmax(h @ columns.t(), -1)
    entropy = -(p * log_q).sum(-1)
    distance = (p - log_q.exp()).abs().sum(-1) / 2
    plain = ((1 - variation) * entropy + variation * distance) @ weight
    (wanted,) = torch.autograd.grad(3 * plain, h)
    fused = soft_loss(h, columns, p, weight, variation)
    (got,) = torch.autograd.grad(3 * fused, h)
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(got, wanted)


def test_total_variation_leaves_the_logit_space_term_out():
    generator = torch.Generator().manual_seed(4)
    truth, columns = torch.randn(1, 5, 6, generator=generator), torch.randn(9, 6)
    gram, weight, off = torch.eye(6), torch.ones(1, 5), truth + 1

    def value(variation: float, gram: torch.Tensor | None) -> float:
        config = LossConfig(gram=0.5, variation=variation)
        return float(unrolled_loss([off], truth, columns, gram, weight, config)[0])

    assert value(1.0, gram) == value(1.0, None) < 1
    assert value(0.0, gram) - value(0.0, None) == pytest.approx(0.5 * 3, rel=1e-5)
    assert value(0.5, gram) - value(0.5, None) == pytest.approx(0.25 * 3, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 31, 32, 77])
def test_softmax_in_blocks_of_rows(rows):
    generator = torch.Generator().manual_seed(rows)
    h = torch.randn(rows, 6, generator=generator)
    columns = torch.randn(50, 6, generator=generator)
    torch.testing.assert_close(softmax_rows(h, columns), torch.softmax(h @ columns.t(), -1))


def test_quadratic_form_has_the_gradient_of_the_plain_formula():
    generator = torch.Generator().manual_seed(4)
    error = torch.randn(7, 6, generator=generator, requires_grad=True)
    root = torch.randn(6, 6, generator=generator)
    gram, weight = root.t() @ root, torch.rand(7, generator=generator)
    plain = ((error @ gram) * error).sum(-1) @ weight / 2
    fused = quadratic_form(error, gram, weight)
    torch.testing.assert_close(fused, plain)
    for got, wanted in zip(
        torch.autograd.grad(3 * fused, error), torch.autograd.grad(3 * plain, error), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("shape", [(7, 6), (2, 5, 3, 4)])
def test_rms_norm_has_the_gradient_of_the_plain_formula(shape):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    weight = torch.randn(shape[-1], generator=generator, requires_grad=True)
    toward = torch.randn(shape, generator=generator)
    plain = F.rms_norm(x, (shape[-1],), weight, 1e-6)
    ours = rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(ours, plain)
    for got, wanted in zip(
        torch.autograd.grad((ours * toward).sum(), (x, weight)),
        torch.autograd.grad((plain * toward).sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)
    (alone,) = torch.autograd.grad((rms_norm(x.detach(), weight, 1e-6) * toward).sum(), weight)
    torch.testing.assert_close(alone, got)


def test_a_batch_without_a_row_to_learn_from_changes_nothing():
    truth = torch.randn(2, 3, 6, requires_grad=True)
    total, values = unrolled_loss(
        [truth, truth],
        truth.detach(),
        torch.randn(9, 6),
        torch.eye(6),
        torch.zeros(2, 3),
        LossConfig(),
    )
    (gradient,) = torch.autograd.grad(total, truth)
    assert float(total.detach()) == 0
    assert values == [0.0, 0.0]
    assert not gradient.any()


def test_16_bit_gradients_are_those_of_float32():
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(40, 64, generator=generator).bfloat16()
    weight = torch.randn(64, generator=generator)
    toward = torch.randn(40, 64, generator=generator).bfloat16()
    columns = torch.randn(50, 64, generator=generator).bfloat16() / 8
    p = torch.softmax(torch.randn(40, 50, generator=generator), -1)

    def gradients(dtype):
        h = x.to(dtype).requires_grad_()
        w = weight.clone().requires_grad_()
        normed = rms_norm(h, w, 1e-6)
        assert normed.dtype == dtype
        loss = soft_loss(normed, columns.to(dtype), p, torch.full((40,), 1 / 40))
        return torch.autograd.grad(loss + (normed * toward.to(dtype)).float().mean(), (h, w))

    for got, wanted in zip(gradients(torch.bfloat16), gradients(torch.float32), strict=True):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(got.float(), wanted, rtol=0.02, atol=0.02 * scale)


def masked_attention(q, past, begin, window, scale):
    """The same by one mask over the keys of all steps: committed pairs up to t - s, and one
    ancestor a step."""
    step, length = len(past) - 1, past[0][0].shape[2]
    row = torch.arange(begin, length)[:, None]
    column = torch.arange(length)[None, :]
    committed = column <= row - step
    if window:
        committed &= row - column < window
    chain = [column[:, begin:] == row - step + s for s in range(1, step + 1)]
    keys, values = (torch.cat([pair[i] for pair in past], 2) for i in (0, 1))
    return F.scaled_dot_product_attention(
        q, keys, values, attn_mask=torch.cat([committed, *chain], 1), scale=scale, enable_gqa=True
    )


@pytest.mark.parametrize(("heads", "groups"), [(4, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("begin", [0, 4])
@pytest.mark.parametrize("window", [0, 5])
def test_attention_sees_committed_pairs_and_one_ancestor_a_step(heads, groups, begin, window):
    generator = torch.Generator().manual_seed(6)
    length, past = 13, []
    rows = length - begin
    for step in range(4):
        shape = (2, groups, rows if step else length, 8)
        past.append(tuple(torch.randn(shape, generator=generator) for _ in range(2)))
        q = torch.randn(2, heads, rows, 8, generator=generator)
        inputs = [q, *(x for pair in past for x in pair)]
        for x in inputs:
            x.requires_grad_()
        toward = torch.randn(q.shape, generator=generator)
        got = attend(q, past, begin, window, 0.3)
        wanted = masked_attention(q, past, begin, window, 0.3)
        torch.testing.assert_close(got, wanted)
        for a, b in zip(
            torch.autograd.grad((got * toward).sum(), inputs),
            torch.autograd.grad((wanted * toward).sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("layers", "for_vllm"), [(1, False), (2, False), (1, True)])
def test_context_rows_change_nothing_but_the_work(tiny_model_dir, layers, for_vllm):
    """Rows from ``begin`` on are the same whether or not the rows before them are computed."""
    target = load_transformers(tiny_model_dir, "tiny", torch.float32, torch.device("cpu"))
    module = from_target(drafter_config(target, layers, 1.0, for_vllm), target)
    given = (target.backbone.embedding, target.backbone.norm)
    torch.manual_seed(4)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(5, 200, (2, 12))
    features = torch.randn(2, 12, target.hidden_size)
    begin, depth = 4, 3
    whole = module_unroll(module, features, tokens, *given, depth)
    part = module_unroll(module, features, tokens, *given, depth, begin)
    for step in range(depth):
        torch.testing.assert_close(part[step][:, step:], whole[step][:, begin + step :])
