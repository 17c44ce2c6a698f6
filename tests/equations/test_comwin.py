"""ComWin: who wins, both losses, and ComWin+'s attention against numpy."""

from copy import deepcopy
from typing import Any, cast

import numpy as np
import pytest
import torch
from by_hand import Array, array, batch, dice_ce, softmax
from notes import Notes

from sscl.core.batch import Clock
from sscl.core.plan import IGNORE
from sscl.methods.comwin import ComWin, ComWinConfig, compete_to_win
from sscl.nets.window_attention import BoundaryAwareVNet, WindowAttention, relative_positions

CONTRACT = Notes(variants=({"boundary_aware": True},), under={"window": {"boundary_aware": True}})
CLOCK = Clock(0, 10, "train", 0, 10)


def winners(p: list[Array]) -> list[Array]:
    """For each network the label of the surer one of the two others, voxel by voxel."""
    won = []
    for i in range(3):
        j, k = (n for n in range(3) if n != i)
        won.append(np.where(p[j].max(1) >= p[k].max(1), p[j].argmax(1), p[k].argmax(1)))
    return won


def build(**settings: Any) -> ComWin:
    torch.manual_seed(0)
    return ComWin(ComWinConfig(width=2, dropout=0.0, **settings), 1, 3).train()


class TestCompeteToWin:
    def test_by_hand(self) -> None:
        # three voxels; probabilities of the classes 0, 1, 2 by the networks A, B, C
        a = [[0.5, 0.3, 0.2], [0.9, 0.0, 0.1], [0.4, 0.35, 0.25]]
        b = [[0.1, 0.7, 0.2], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3]]
        c = [[0.2, 0.2, 0.6], [0.0, 0.1, 0.9], [0.2, 0.3, 0.5]]
        logits = [torch.tensor(p).clamp(min=1e-6).log().T.reshape(1, 3, 3, 1, 1) for p in (a, b, c)]
        for_a, for_b, for_c = (label.flatten().tolist() for label in compete_to_win(logits))
        assert for_a == [1, 2, 2]  # B .7 against C .6, then C twice
        assert for_b == [2, 0, 2]  # at the second voxel A and C tie at .9: the first one
        assert for_c == [1, 0, 0]  # at the last voxel A and B tie at .4

    def test_nothing_is_learned_through_a_label(self) -> None:
        logits = [torch.randn(1, 2, 2, 2, 2, requires_grad=True) for _ in range(3)]
        assert not any(label.requires_grad for label in compete_to_win(logits))


def test_loss() -> None:
    method, crops = build(), batch(classes=3)
    crops.label[:, 0] = IGNORE
    nets = deepcopy(method.students)
    (objective,) = method.step(crops, CLOCK)
    z = [array(net(crops.images)) for net in nets]
    won = winners([softmax(z_i[2:]) for z_i in z])
    sup = sum(dice_ce(z_i[:2], crops.label.numpy()) for z_i in z)
    cps = sum(dice_ce(z_i[2:], c_i) for z_i, c_i in zip(z, won, strict=True))
    assert {name: term.item() for name, term in objective.terms.items()} == pytest.approx(
        {"sup": sup, "cps": cps}, rel=1e-5
    )
    assert objective.loss.item() == pytest.approx(0.5 * (sup + 0.5 * cps), rel=1e-5)
    assert not {"sup_half", "cps_half"} & objective.terms.keys()


def test_the_weights_do_not_ramp() -> None:
    method, crops = build(lam=2.0, supervised_weight=0.25), batch(classes=3)
    for iteration in (0, 9):
        (objective,) = method.step(crops, Clock(iteration, 10, "train", iteration, 10))
        expected = 0.25 * (objective.terms["sup"] + 2 * objective.terms["cps"])
        torch.testing.assert_close(objective.loss, expected)


def test_comwin_plus_has_losses_at_half_resolution_and_attends_where_the_winners_see_a_boundary() -> None:
    method, crops = build(boundary_aware=True, window=2), batch(classes=3)
    crops.label[:, 4:8] = IGNORE
    nets = [cast(BoundaryAwareVNet, net) for net in deepcopy(method.students)]
    (objective,) = method.step(crops, CLOCK)
    coarse = [net.coarse(crops.images) for net in nets]
    z_half = [array(logits) for *_, logits in coarse]
    half = torch.from_numpy(np.stack(winners([softmax(z) for z in z_half])))
    z_full = [array(net.fine(x1, x8, y)) for net, (x1, x8, _), y in zip(nets, coarse, half, strict=True)]
    label = crops.label.numpy()
    for suffix, z, y in (("", z_full, label), ("_half", z_half, label[:, ::2, ::2, ::2])):
        won = winners([softmax(z_i[2:]) for z_i in z])
        sup = sum(dice_ce(z_i[:2], y) for z_i in z)
        cps = sum(dice_ce(z_i[2:], c_i) for z_i, c_i in zip(z, won, strict=True))
        assert objective.terms[f"sup{suffix}"].item() == pytest.approx(sup, rel=1e-5)
        assert objective.terms[f"cps{suffix}"].item() == pytest.approx(cps, rel=1e-5)
    t = {name: term.item() for name, term in objective.terms.items()}
    expected = 0.5 * (t["sup"] + t["sup_half"] + 0.5 * (t["cps"] + t["cps_half"]))
    assert objective.loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_first_network_is_tested_and_knows_the_boundary_by_itself() -> None:
    method = build(boundary_aware=True)  # in training mode: with fresh statistics of batch norm it sees one class only
    images = batch().images
    first = cast(BoundaryAwareVNet, method.students[0])
    x1, x8, logits = first.coarse(images)
    assert x8.shape == (4, 4, 16, 16, 8)
    assert logits.shape == (4, 3, 16, 16, 8)
    expected = first.fine(x1, x8, logits.argmax(1)).softmax(1)
    assert torch.equal(method.predict(images), expected)
    # one class everywhere: nothing is attended to, and the network is the plain V-Net
    blind = first.fine(x1, x8, torch.zeros(4, 16, 16, 8, dtype=torch.long))
    assert torch.equal(blind, first.vnet(images))
    assert not torch.equal(blind.softmax(1), expected)


def test_comwin_plus_drops_the_channels_that_the_v_net_drops() -> None:
    torch.manual_seed(0)
    net, images = BoundaryAwareVNet(1, 3, 2, 0.5, 4).train(), batch().images
    torch.manual_seed(1)
    x1, x8, _ = net.coarse(images)
    blind = net.fine(x1, x8, torch.zeros(4, 16, 16, 8, dtype=torch.long))
    torch.manual_seed(1)
    assert torch.equal(blind, net.vnet(images))


def attention_in_numpy(x: Array, label: Array, module: WindowAttention) -> Array:
    """Window by window, voxel pair by voxel pair, on a volume padded with its edge."""
    w, (b, _, *lengths) = module.window, x.shape
    ends = [(0, -length % w) for length in lengths]
    x = np.pad(x, [(0, 0), (0, 0), *ends], mode="edge")
    label = np.pad(label, [(0, 0), *ends], mode="edge")
    qkv, out = (
        lambda t, layer=layer: t @ array(layer.weight).T + array(layer.bias) for layer in (module.qkv, module.out)
    )
    side, bias, found = 2 * w - 1, array(module.bias), np.zeros_like(x)
    places = list(np.ndindex(w, w, w))
    for row, *corner in np.ndindex(b, *(n // w for n in x.shape[2:])):
        window = (row, ..., *(slice(k * w, (k + 1) * w) for k in corner))
        if len(np.unique(label[window])) == 1:
            continue
        q, k, v = np.split(qkv(x[window].reshape(x.shape[1], -1).T), 3, axis=1)
        scores = q @ k.T / np.sqrt(x.shape[1])
        for i, p in enumerate(places):
            for j, o in enumerate(places):
                dx, dy, dz = (a - c + w - 1 for a, c in zip(p, o, strict=True))
                scores[i, j] += bias[(dx * side + dy) * side + dz]
        weights = softmax(scores)
        found[window] = out(weights @ v).T.reshape(x.shape[1], w, w, w)
    return found[:, :, : lengths[0], : lengths[1], : lengths[2]]


class TestWindowAttention:
    @pytest.mark.parametrize(("window", "shape"), [(2, (4, 4, 2)), (3, (6, 3, 3)), (3, (4, 5, 3)), (4, (2, 4, 1))])
    def test_against_numpy(self, window: int, shape: tuple[int, int, int]) -> None:
        torch.manual_seed(0)
        module = WindowAttention(6, window)
        torch.nn.init.normal_(module.bias)
        x, label = torch.randn(2, 6, *shape), (torch.rand(2, *shape) < 0.2).long()
        label[0, :2, :2, :2] = 1  # a window of one class, where windows are that small
        expected = attention_in_numpy(array(x), label.numpy(), module)
        np.testing.assert_allclose(array(module(x, label)), expected, atol=1e-5)
        assert expected.any()

    def test_only_windows_with_more_than_one_class(self) -> None:
        torch.manual_seed(0)
        module, label = WindowAttention(2, 2), torch.zeros(1, 4, 2, 2, dtype=torch.long)
        label[0, 2:] = 2
        assert not module(torch.randn(1, 2, 4, 2, 2), label).any()  # two windows, of class 0 and of class 2
        label[0, 3, 0, 0] = 1
        found = module(torch.randn(1, 2, 4, 2, 2), label)
        assert not found[:, :, :2].any()
        assert found[:, :, 2:].all()

    def test_equal_differences_share_a_bias(self) -> None:
        relative = relative_positions(2)  # voxels in the order 000 001 010 ... 111
        assert relative.diagonal().tolist() == [13] * 8  # the middle of 27
        assert relative[0, 7] == 0
        assert relative[7, 0] == 26
        assert relative[1, 0] == relative[3, 2] == relative[7, 6] == 14
        assert relative[0, 4] == 4  # (-1, 0, 0): (0 * 3 + 1) * 3 + 1
        assert len(relative.unique()) == 27

    def test_in_low_precision(self) -> None:
        torch.manual_seed(0)
        module, x, label = WindowAttention(4, 2), torch.randn(1, 4, 2, 2, 2), torch.arange(8).view(1, 2, 2, 2)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module(x, label)
        torch.testing.assert_close(rounded.float(), module(x, label), atol=2e-2, rtol=0)


def test_parameters() -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters())

    assert count(ComWin(ComWinConfig(), 1, 2)) == 3 * 9_448_866
    # the second output: two convolutions with biases, batch norm; attention: qkv, out, biases of 7^3 differences
    head, attention = (32 * 2 + 2) + 2 * 2 + (2 * 2 + 2), (32 * 96 + 96) + (32 * 32 + 32) + 7**3
    assert count(BoundaryAwareVNet(1, 2, 16, 0.5, 4)) == 9_448_866 + head + attention
