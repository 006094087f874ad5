from __future__ import annotations

import pytest
import torch

from segformer_spark.errors import ConfigError
from segformer_spark.kernels.select import select_arithmetic
from tests.tiny import tiny_segformer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGFORMER_KERNELS", raising=False)


def test_auto_goes_by_the_device_and_a_setting_does_not() -> None:
    assert (select_arithmetic("auto", CPU), select_arithmetic("auto", GPU)) == ("cpu", "gpu")
    assert (select_arithmetic("plain", CPU), select_arithmetic("cpu", GPU)) == ("plain", "cpu")


def test_the_variable_comes_before_the_setting_and_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SEGFORMER_KERNELS", "plain")
    with caplog.at_level("INFO", logger="segformer_spark"):
        assert [select_arithmetic("cpu", CPU) for _ in range(2)] == ["plain", "plain"]
    assert caplog.text.count("SEGFORMER_KERNELS=plain takes the place") == 1
    monkeypatch.setenv("SEGFORMER_KERNELS", "fast")
    with pytest.raises(ConfigError, match="'fast'.*auto, cpu, plain, gpu"):
        select_arithmetic("cpu", CPU)


@pytest.mark.parametrize("training", [True, False])
def test_the_arithmetics_agree(training: bool) -> None:
    """Drawn numbers differ, so without dropout; drop path is tested by its mean."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    model = tiny_segformer(["a", "b", "c"], dropout=0.0, drop_path=0.0).train(training)
    found = {}
    for kernels in ("cpu", "plain", "gpu"):
        model.use_kernels(kernels)  # type: ignore[arg-type]
        found[kernels] = model(images)
        assert found[kernels].shape == (2, 3, 16, 24)
    torch.testing.assert_close(found["plain"], found["cpu"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["gpu"], found["cpu"], rtol=1e-4, atol=1e-5)
