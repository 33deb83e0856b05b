"""k-NN and the linear probe against slow twins: loops over images, and SGD with its gradient by hand in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F

from vitkd_ds.train import probe
from vitkd_ds.train.probe import fit_linear, knn_votes, linear_probe, top1

K, D = 4, 6


def clusters(count, seed, *, noise=1.0, shared=0.0):
    """Features in K overlapping clusters far from 0, with channels of different sizes, and their labels.

    `shared` noise is equal in all channels, so the direction between two means does not separate the clusters.
    """
    centres = torch.randn(K, D, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (count,), generator=generator)
    features = centres[labels] + noise * torch.randn(count, D, generator=generator)
    features = features + shared * torch.randn(count, 1, generator=generator)
    return 0.3 + features * torch.tensor([1.0, 30, 0.1, 1, 1, 5]), labels


def cosine(a, b):
    dot, norms = sum(x * y for x, y in zip(a, b)), math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return dot / norms


@pytest.mark.parametrize("k, temperature", [(20, 0.07), (3, 0.5)])
def test_neighbours_vote_like_a_slow_loop(monkeypatch, k, temperature):
    monkeypatch.setattr(probe, "ROWS", 8)
    (train, labels), (val, _) = clusters(50, 0), clusters(19, 1)
    found = knn_votes(train, labels, val, num_classes=K + 1, k=k, temperature=temperature)
    for number, image in enumerate(val.tolist()):
        order = sorted(((cosine(image, other), label) for other, label in zip(train.tolist(), labels.tolist())))[::-1]
        votes = [0.0] * (K + 1)
        for similarity, label in order[:k]:
            votes[label] += math.exp(similarity / temperature)
        assert found[number].tolist() == pytest.approx(votes, rel=1e-3)


def test_knn_has_dinos_defaults_and_rejects_too_few_images():
    (train, labels), (val, _) = clusters(50, 0), clusters(19, 1)
    explicit = knn_votes(train, labels, val, num_classes=K, k=20, temperature=0.07)
    assert torch.equal(knn_votes(train, labels, val, num_classes=K), explicit)
    with pytest.raises(
        ValueError, match="k-NN needs at least 20 training images that .*, got 19. Pass more with --train"
    ):
        knn_votes(val, labels[:19], val, num_classes=K)


def slow_fit(features, labels, *, lr, seed, epochs):
    """SGD with momentum and a cosine schedule, from zero, with the gradient by hand, in fp64."""
    weight, bias = torch.zeros(K, D, dtype=torch.float64), torch.zeros(K, dtype=torch.float64)
    speeds = [torch.zeros_like(weight), torch.zeros_like(bias)]
    step, num_steps = 0, epochs * -(-len(features) // 256)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(features), generator=generator).split(256):
            batch = features[rows].double()
            error = ((batch @ weight.T + bias).softmax(1) - F.one_hot(labels[rows], K)) / len(rows)
            speeds = [0.9 * speeds[0] + error.T @ batch, 0.9 * speeds[1] + error.sum(0)]
            rate = lr * (1 + math.cos(math.pi * step / num_steps)) / 2
            weight, bias = weight - rate * speeds[0], bias - rate * speeds[1]
            step += 1
    return weight, bias


@pytest.mark.parametrize("count, lr, seed, epochs", [(300, 0.1, 0, 3), (100, 0.01, 5, 20)])
def test_a_fitted_classifier_matches_sgd_by_hand(count, lr, seed, epochs):
    features, labels = clusters(count, 0)
    features = features / features.std(0)
    found = fit_linear(features, labels, num_classes=K, lr=lr, seed=seed, epochs=epochs)
    for own, slow in zip(found.parameters(), slow_fit(features, labels, lr=lr, seed=seed, epochs=epochs), strict=True):
        torch.testing.assert_close(own.detach().double(), slow, rtol=1e-3, atol=1e-4)


def slow_probe(train, labels, val, seed):
    """Choose the rate on the first tenth of the seed's order, standardised without it; then train on all images."""

    def answers(own, their_labels, others, lr):
        mean, std = own.mean(0), own.std(0, correction=0)
        weight, bias = slow_fit((own - mean) / std, their_labels, lr=lr, seed=seed, epochs=20)
        return ((others - mean) / std) @ weight.T + bias

    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held, kept = order[: len(train) // 10], order[len(train) // 10 :]
    right = []
    for lr in probe.RATES:
        right.append((answers(train[kept], labels[kept], train[held], lr).argmax(1) == labels[held]).sum().item())
    lr = probe.RATES[right.index(max(right))]
    return answers(train, labels, val, lr), lr, right


def test_the_probe_matches_a_slow_one_and_its_rate_is_chosen_on_held_out_images(monkeypatch):
    monkeypatch.setattr(probe, "RATES", (1e-5, 0.003, 0.1, 10.0))
    (train, labels), (val, _) = clusters(290, 2, shared=3.0), clusters(40, 3, shared=3.0)
    logits, lr, right = slow_probe(train.double(), labels, val.double(), seed=2)
    assert right[0] < max(right) and lr not in (probe.RATES[0], probe.RATES[-1]), right
    found = linear_probe(train, labels, val, num_classes=K, seed=2)
    assert found.lr == lr
    torch.testing.assert_close(found.logits_MK.double(), logits, rtol=1e-2, atol=1e-3)
    for seed in (3, 4, 5):  # by chance one rate or another might be chosen
        expected = slow_probe(train.double(), labels, val.double(), seed=seed)[1]
        assert linear_probe(train, labels, val, num_classes=K, seed=seed).lr == expected


def test_the_seed_determines_every_bit():
    (train, labels), (val, _) = clusters(300, 2), clusters(40, 3)
    first, again, other = (linear_probe(train, labels, val, num_classes=K, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first.logits_MK, again.logits_MK) and first.lr == again.lr
    assert not torch.equal(first.logits_MK, other.logits_MK)
    default = linear_probe(train, labels, val, num_classes=K)
    assert torch.equal(default.logits_MK, linear_probe(train, labels, val, num_classes=K, seed=0).logits_MK)


def test_a_channel_that_never_varies_changes_nothing_and_few_images_are_rejected():
    (train, labels), (val, _) = clusters(120, 2), clusters(40, 3)
    wider = [torch.cat([features, torch.full((len(features), 1), 7.0)], 1) for features in (train, val)]
    both = [linear_probe(one, labels, other, num_classes=K) for one, other in ((train, val), wider)]
    torch.testing.assert_close(both[0].logits_MK, both[1].logits_MK, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="a probe needs at least 10 training images, got 9"):
        linear_probe(train[:9], labels[:9], val, num_classes=K)


def test_top1_is_in_percent():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert top1(scores, torch.tensor([1, 0, 0, 0])) == 75
