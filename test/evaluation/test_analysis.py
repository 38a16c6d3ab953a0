"""The analysis of features, against other ways to the same figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evspec_ros.cli import main
from evspec_ros.errors import TrainingError
from evspec_ros.evaluation.analysis import PLAIN, SHUFFLED, Moments, _Values, analyse
from evspec_ros.evaluation.analysis_report import plot_analysis
from evspec_ros.networks.adapters import Adapter, AdapterConfig
from evspec_ros.networks.draft_head import EagleConfig, EagleHead
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.tiny import tiny_eventgpt, tiny_video_llava
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.training.features import FeaturePlan, FeatureShards, ModelPair, SceneBatch, extract

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(300, 7, generator=RANDOM) + 2
Y = X @ torch.randn(7, 5, generator=RANDOM) + 0.5 * torch.randn(300, 5, generator=RANDOM) - 3


def _moments(x: torch.Tensor, y: torch.Tensor) -> Moments:
    """In two pieces."""
    return Moments.of(x[:100], y[:100]) + Moments.of(x[100:], y[100:])


def test_cka_is_that_of_the_centred_gram_matrices() -> None:
    """Kornblith et al.'s definition by HSIC, which never forms a covariance."""
    centring = np.eye(300) - 1 / 300
    one, two = (centring @ (rows @ rows.T).double().numpy() @ centring for rows in (X, Y))
    expected = (one * two).sum() / np.sqrt((one * one).sum() * (two * two).sum())
    assert _moments(X, Y).cka() == pytest.approx(expected, rel=1e-9)


def test_cka_does_not_see_rotation_scale_and_shift() -> None:
    """1 for one space in two guises, near 0 for two that have nothing in common."""
    rotation, _ = torch.linalg.qr(torch.randn(7, 7, generator=RANDOM))
    assert _moments(X, 3 * X @ rotation + 1).cka() == pytest.approx(1, abs=1e-6)
    assert _moments(X, torch.randn(300, 5, generator=RANDOM)).cka() < 0.05


def test_the_probe_is_a_ridge_regression_tested_on_other_rows() -> None:
    """Against the residuals themselves."""
    fit, test = slice(0, 200), slice(200, 300)
    centred = [(rows[fit] - rows[fit].mean(0)).double() for rows in (X, Y)]
    covariance = centred[0].T @ centred[0]
    ridge = 1e-3 * covariance.diagonal().mean() * torch.eye(7, dtype=torch.float64)
    weight = torch.linalg.solve(covariance + ridge, centred[0].T @ centred[1])
    found = (X[test] - X[fit].mean(0)).double() @ weight + Y[fit].double().mean(0)
    left = (Y[test].double() - found).square().sum()
    expected = 1 - left / (Y[test] - Y[test].mean(0)).double().square().sum()
    assert Moments.of(X[fit], Y[fit]).probe(Moments.of(X[test], Y[test])) == pytest.approx(float(expected))


def _pair() -> ModelPair:
    torch.manual_seed(0)
    target, event_model = VideoLlava(tiny_video_llava(60, 58, 59)), EventGpt(tiny_eventgpt(60))
    ids = torch.tensor([1, 59, 7])
    return ModelPair(target.eval(), event_model.eval(), ids, (torch.tensor([1]), torch.tensor([6])))


def _noise(start: int, stop: int) -> SceneBatch:
    generator = torch.Generator().manual_seed(start)
    shape = (stop - start, 8, 3, 64, 64)
    frames = torch.randn(shape, generator=generator)
    return SceneBatch(frames, frames[:, :5])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> FeatureShards:
    """Twelve scenes in shards of four, where the event model's features are the target's, in another
    basis.
    """
    pair = _pair()
    plan = FeaturePlan.for_pair(pair, layers=(5,), context=0, max_new_tokens=6, shard=4)
    found = extract(pair, _noise, tmp_path_factory.mktemp("features"), plan, 12, "noise")
    random = torch.Generator().manual_seed(3)
    low, last, basis = (torch.randn(4, width, generator=random) for width in (256, 256, 192))
    for path in found.paths:
        tensors = load_file(path)
        own, shared = torch.randn(2, *tensors["features"].shape[:2], 4, generator=random)
        ours, theirs = torch.cat((own @ low, shared @ last), -1), shared @ basis
        save_file({**tensors, "features": ours.half(), "event_features": theirs.half()}, path)
    return found


def test_what_is_shared_is_found_and_what_was_shuffled_is_not(shards: FeatureShards) -> None:
    """The last layers share a linear map, layer 5 shares nothing; neither does another scene."""
    analysis = analyse(shards)
    cka = {(a.layer, a.event_layer, a.partner): a.cka for a in analysis.alignments}
    probe = {(a.layer, a.event_layer, a.partner): a.probe for a in analysis.alignments}
    assert cka[10, 4, PLAIN] > 0.5
    assert max(cka[10, 4, SHUFFLED], cka[5, 4, PLAIN]) < 0.2
    assert probe[10, 4, PLAIN] > 0.99
    assert max(probe[10, 4, SHUFFLED], probe[5, 4, PLAIN]) < 0.2
    assert analysis.padded
    (last,) = [d for d in analysis.distributions if (d.space, d.layer) == ("target", 10)]
    assert 2 < last.dimensions <= 4
    assert sum(last.density) * 12 / len(last.density) == pytest.approx(1, abs=1e-2)


def test_normal_values_have_a_normal_distribution() -> None:
    """Mean, rms, kurtosis and density, in two pieces."""
    values = torch.randn(2000, 16, generator=RANDOM)
    sums = _Values()
    for part in values.chunk(2):
        sums.add(5 * part + 0.5)
    found = sums.distribution("target", 1, torch.eye(16))
    assert (found.mean, found.rms) == (pytest.approx(0.5, abs=0.1), pytest.approx(25.25**0.5, rel=0.02))
    assert found.kurtosis == pytest.approx(3, abs=0.1)
    assert found.dimensions == pytest.approx(16)
    assert found.density[len(found.density) // 2] == pytest.approx(0.4, abs=0.02)


def test_an_adapter_that_knows_brings_the_spaces_together(shards: FeatureShards) -> None:
    """One that yields the target's rows has a cosine of 1 at every position; before it there is little."""
    adapter = Adapter(AdapterConfig(256, 192))
    answers = [shards[index] for index in range(len(shards))]
    outputs = iter([features for one in answers for features in [one.features[..., -256:]] * 2])
    adapter.adapter = _Oracle(outputs)  # type: ignore[assignment]
    near = {(n.name, n.partner): n for n in analyse(shards, adapter).nearness}
    assert near["after", PLAIN].cosine == pytest.approx([1.0] * 6)
    assert near["after", PLAIN].distance == pytest.approx([0.0] * 6, abs=1e-6)
    assert max(near["after", SHUFFLED].cosine) < 0.9
    assert max(map(abs, near["before", PLAIN].cosine)) < 0.5


class _Oracle(torch.nn.Module):
    """Yields what it was given, whatever it reads."""

    def __init__(self, outputs) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self._outputs = outputs

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        """The next one."""
        return next(self._outputs)  # type: ignore[no-any-return]


def test_a_head_without_an_adapter_is_refused(shards: FeatureShards) -> None:
    """And one of other sizes."""
    with pytest.raises(TrainingError, match="kind eagle has no adapter"):
        analyse(shards, EagleHead(EagleConfig.for_target(shards.pair.target.config.text, 192, 22)))
    with pytest.raises(TrainingError, match="turns 24 values into 256"):
        analyse(shards, Adapter(AdapterConfig(256, 24)))


def test_the_picture_is_written(shards: FeatureShards, tmp_path: Path) -> None:
    """As PNG."""
    plot_analysis(analyse(shards), tmp_path / "analysis.png")
    assert (tmp_path / "analysis.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_names_a_directory_without_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, status 1."""
    assert main(["features", "analyse", str(tmp_path)]) == 1
    assert "has no features.json" in capsys.readouterr().err
