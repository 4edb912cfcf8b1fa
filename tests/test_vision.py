"""torchvision's and timm's models, checked as in `test_models.py`; skipped, with the reason, where they cannot run."""

from __future__ import annotations

import importlib

import pytest

from tests.zoo import Net, check
from tests.zoo.vision import TIMM, TORCHVISION

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"mobilenetv3_small_100", "mobilenet_v3_small", "densenet121"}


def need(library: str) -> None:
    """Skip unless the library can be imported: torchvision raises RuntimeError beside a torch of another build."""
    try:
        importlib.import_module(library)
    except Exception as error:
        pytest.skip(f"{library} cannot be imported ({type(error).__name__}: {error}); pip install 'pathsum[vision]'")


def marked(nets: dict[str, Net]) -> list:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in nets]


@pytest.mark.parametrize("name", marked(TORCHVISION))
def test_torchvision(name: str) -> None:
    need("torchvision")
    check(TORCHVISION[name])


@pytest.mark.parametrize("name", marked(TIMM))
def test_timm(name: str) -> None:
    need("timm")
    check(TIMM[name])


def test_a_library_that_is_there_but_broken_is_skipped_with_its_reason(tmp_path, monkeypatch) -> None:
    (tmp_path / "brokenvision.py").write_text("raise RuntimeError('operator brokenvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(pytest.skip.Exception, match="RuntimeError: operator brokenvision::nms does not exist"):
        need("brokenvision")
