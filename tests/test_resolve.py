"""MODEL in all its forms: the packages' own models where they are installed, stand-ins for them where not."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

import pathsum as ps
from pathsum.cli import main
from pathsum.errors import CheckpointError, PathsumError
from pathsum.resolve import resolve
from pathsum.storage import write_tensors
from tests import language

HUB = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory; no connection."""
    monkeypatch.chdir(tmp_path)
    for name in HUB:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def refusal(capsys, *options: str) -> str:
    """The one line that a command ends with."""
    assert main(["inspect", *options]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: .*\n", err), err
    return err


def record(name: str) -> dict:
    return json.loads(Path("pathsum-inspect", name, "inspect.json").read_text())["result"]


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without figures: drawing takes most of a small inspection's time."""
    monkeypatch.setattr("pathsum.figures.draw", lambda *args, **options: "<svg></svg>")


# --- torchvision and timm, by stand-ins ------------------------------------------------------------------


def tower(num_classes: int = 12) -> ps.ResidualTower:
    return ps.ResidualTower(depth=2, width=4, encoder="conv3x3", num_classes=num_classes)


@dataclass(frozen=True)
class Transforms:
    crop_size: tuple[int, ...] = (16,)
    mean: tuple[float, ...] = (0.5, 0.4, 0.3)
    std: tuple[float, ...] = (0.2, 0.3, 0.4)


class Weights(Enum):
    IMAGENET1K_V1 = "v1"
    IMAGENET1K_V2 = "v2"
    DEFAULT = IMAGENET1K_V2

    def transforms(self):
        return Transforms()


@pytest.fixture
def torchvision(monkeypatch):
    """torchvision.models with one network, whose published weights are all 0.01."""

    def get_model(name, weights=None, **options):
        model = tower(**options)
        if weights is not None:
            for p in model.parameters():
                torch.nn.init.constant_(p, 0.01 if weights is Weights.IMAGENET1K_V2 else 0.02)
        return model

    models = ModuleType("torchvision.models")
    models.list_models = lambda: ["tower", "tower_wide"]
    models.get_model, models.get_model_weights = get_model, lambda name: Weights
    package = ModuleType("torchvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


@pytest.fixture
def timm(monkeypatch):
    """timm with one network, of two published weights."""

    def create_model(name, pretrained=False, **options):
        model = tower(**options)
        model.pretrained_cfg = {"input_size": (3, 12, 12), "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
        if pretrained:
            value = {"tower": 0.01, "tower.a1": 0.01, "tower.a2": 0.02}[name]
            for p in model.parameters():
                torch.nn.init.constant_(p, value)
        return model

    package = ModuleType("timm")
    package.is_model = lambda name: name == "tower"
    package.list_models = lambda pattern="", pretrained=False: ["tower.a1", "tower.a2"] if pattern else ["tower"]
    package.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", package)


@pytest.mark.usefixtures("torchvision", "timm")
@pytest.mark.parametrize(
    ("word", "about", "value", "shape", "mean"),
    [
        ("torchvision:tower", "torchvision's tower, random weights (add @DEFAULT", None, (3, 224, 224), None),
        ("torchvision:tower@DEFAULT", "published weights DEFAULT", 0.01, (3, 16, 16), (0.5, 0.4, 0.3)),
        ("torchvision:tower@IMAGENET1K_V1", "published weights IMAGENET1K_V1", 0.02, (3, 16, 16), (0.5, 0.4, 0.3)),
        ("timm:tower", "timm's tower, random weights (add @DEFAULT", None, (3, 12, 12), None),
        ("timm:tower@DEFAULT", "timm's tower, published weights DEFAULT", 0.01, (3, 12, 12), (0.1, 0.2, 0.3)),
        ("timm:tower@a2", "timm's tower.a2, published weights a2", 0.02, (3, 12, 12), (0.1, 0.2, 0.3)),
        ("timm:tower.a2", "timm's tower.a2, published weights a2", 0.02, (3, 12, 12), (0.1, 0.2, 0.3)),
        ("timm:tower.a2@DEFAULT", "timm's tower.a2, published weights a2", 0.02, (3, 12, 12), (0.1, 0.2, 0.3)),
    ],
)
def test_networks_of_vision_packages(word, about, value, shape, mean):
    state = torch.get_rng_state()
    target = resolve(word)
    assert torch.equal(state, torch.get_rng_state())
    assert about in target.about
    assert (target.name, target.takes, target.image_shape, target.mean) == ("tower", "images", shape, mean)
    assert not target.model.training
    first = next(target.model.parameters())
    if value is None:
        assert torch.equal(first, next(resolve(word).model.parameters()))  # the same random weights each time
    else:
        assert bool((first == value).all())


@pytest.mark.usefixtures("torchvision", "timm")
@pytest.mark.parametrize("word", ["torchvision:tower", "timm:tower"])
def test_weights_from_a_file_decide_the_number_of_classes(word, here):
    torch.manual_seed(5)
    own = tower(num_classes=10)
    write_tensors(here / "own.safetensors", own.state_dict())
    target = resolve(word, weights=here / "own.safetensors")
    assert "weights " in target.about
    for name, value in own.state_dict().items():
        assert torch.equal(target.model.state_dict()[name], value)
    write_tensors(here / "other.safetensors", ps.ResidualTower(2, 5, encoder="conv3x3").state_dict())
    with pytest.raises(CheckpointError, match=r"has shape \(5, 5, 3, 3\), expected \(4, 4, 3, 3\)"):
        resolve(word, weights=here / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"not a \.safetensors file"):
        resolve(word, weights=here / "own.pth")
    with pytest.raises(PathsumError, match=r"--weights does not go with .*@DEFAULT, which has its own"):
        resolve(f"{word}@DEFAULT", weights=here / "own.safetensors")


@pytest.mark.usefixtures("torchvision", "timm")
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("torchvision:towr", r"torchvision has no model 'towr'; did you mean tower"),
        ("torchvision:tower@V9", r"torchvision's tower has no weights V9; it has IMAGENET1K_V1, IMAGENET1K_V2"),
        ("timm:resnext", r"timm has no model 'resnext'; timm lists its 1 names"),
        ("timm:tower@a9", r"timm's tower has no weights a9; it has a1, a2"),
    ],
)
def test_names_that_a_vision_package_lacks(word, message):
    with pytest.raises(PathsumError, match=message):
        resolve(word)


@pytest.mark.usefixtures("torchvision")
def test_a_failed_download_is_one_line(monkeypatch, capsys):
    def get_model(name, **options):
        assert torch.serialization.os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
        raise OSError("<urlopen error [Errno -2] Name or service not known>\nmore")

    monkeypatch.setattr(sys.modules["torchvision.models"], "get_model", get_model)
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    err = refusal(capsys, "torchvision:tower@DEFAULT", "--data", "digits")
    assert "torchvision:tower@DEFAULT cannot be had (OSError: <urlopen error" in err
    assert "check the connection, or give a file with --weights" in err
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in torch.serialization.os.environ


@pytest.mark.parametrize("package", ["torchvision", "timm", "transformers"])
def test_a_missing_package_says_how_to_install_it(package, monkeypatch, capsys):
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    extra, word = {"transformers": ("hf", "hf:gpt2")}.get(package, ("vision", f"{package}:resnet18"))
    err = refusal(capsys, word, "--data", "digits")
    assert err == f"error: this needs {package}, which is not installed: pip install 'pathsum[{extra}]'\n"


def test_a_package_that_does_not_import_says_why(here, monkeypatch, capsys):
    """As torchvision's wheel beside another torch."""
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (here / "broken" / "torchvision").mkdir(parents=True)
    (here / "broken" / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(str(here / "broken"))
    err = refusal(capsys, "torchvision:resnet18", "--data", "digits")
    assert "torchvision is installed but does not import (RuntimeError: operator nms does not exist)" in err
    assert "install the release of torchvision that belongs to this torch" in err


def test_a_package_that_lacks_another_names_it(here, monkeypatch, capsys):
    for name in ("timm", "torchvision"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (here / "lacking").mkdir()
    (here / "lacking" / "timm.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(str(here / "lacking"))
    err = refusal(capsys, "timm:resnet18", "--data", "digits")
    assert "this needs timm (and nowhere_to_be_found, which timm imports), which is not installed" in err


@pytest.mark.usefixtures("torchvision", "undrawn")
def test_images_of_another_size_channels_and_classes(capsys):
    """The whole command: gray 8×8 digits in a network for 16×16 in three channels and 12 classes."""
    options = ["--data", "digits", "--samples", "20", "--order", "2"]
    assert main(["inspect", "torchvision:tower@DEFAULT", *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "resized from 8×8 to 16×16 pixels" in printed
    assert "The images are gray; each of the model's 3 channels got the same." in printed
    assert "There is no accuracy: the network has 12 classes, and they are not the 10 of digits." in printed
    result = record("tower")
    assert result["accuracy"] is None
    assert result["scores"] == {"agreement": 1.0}
    page = Path("pathsum-inspect/tower/report.html").read_text()
    assert "<dt>accuracy</dt><dd>–</dd>" in page
    assert "There is no accuracy" in page
    lengths = pd.read_csv("pathsum-inspect/tower/tables/lengths.csv")
    assert list(lengths) == ["length", "paths", "norm", "share", "agreement"]
    assert main(["inspect", "torchvision:tower", *options, "--image-size", "8", "--overwrite"]) == 0
    assert "resized" not in capsys.readouterr().out


def test_the_packages_themselves():
    """Where they import: a network of each, found by its name."""
    pytest.importorskip("torchvision", reason="pip install 'pathsum[vision]'", exc_type=Exception)
    pytest.importorskip("timm", reason="pip install 'pathsum[vision]'", exc_type=Exception)
    for word in ("torchvision:resnet18", "timm:resnet18"):
        target = resolve(word)
        net = ps.knobs(target.model, torch.zeros(1, *target.image_shape))
        assert len(net.branches) == 8


# --- transformers ----------------------------------------------------------------------------------------

COMMANDS = {  # what inspect says of each: its class, its score, how many branches, its samples
    "gpt2": ("GPT2LMHeadModel", "accuracy", 4, "next tokens in 6 sequences"),
    "bytes": ("GPT2LMHeadModel", "accuracy", 4, "next tokens in 6 sequences"),
    "llama": ("LlamaForCausalLM", "accuracy", 4, "next tokens in 6 sequences"),
    "bert": ("BertForMaskedLM", "accuracy", 4, "masked tokens in 6 sequences"),
    "encoder": ("BertModel", "similarity", 4, "6 sequences of prose.txt are embedded"),
    "classifier": ("BertForSequenceClassification", "agreement", 4, "6 sequences of prose.txt are classified"),
    "t5": ("T5ForConditionalGeneration", "accuracy", 10, "next tokens in the second halves of 6 sequences"),
    "vit": ("ViTForImageClassification", "accuracy", 4, "of 6 test images of digits are classified"),
    "vit-5": ("ViTForImageClassification", "agreement", 4, "6 images of digits are classified"),
    "vit-base": ("ViTModel", "similarity", 4, "6 images of digits are embedded"),
}


@pytest.fixture
def prose(here) -> str:
    (here / "prose.txt").write_text(language.PROSE)
    return "prose.txt"


@pytest.mark.parametrize("name", COMMANDS)
def test_inspect_a_model_of_transformers(name, here, prose, capsys, request):
    """From a folder that save_pretrained wrote to a page."""
    drawn = name in ("gpt2", "encoder", "vit-5")  # two panels, one, and images
    if not drawn:
        request.getfixturevalue("undrawn")
    kind, score, branches, claim = COMMANDS[name]
    language.save(name, here / "saved" / name)
    data = "digits" if name.startswith("vit") else prose
    options = ["--samples", "6", "--order", "2", "--dtype", "float64"]
    options += [] if name.startswith("vit") else ["--length", "16"]
    capsys.readouterr()
    assert main(["inspect", f"hf:saved/{name}", "--data", data, *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    printed = " ".join(out.split())
    assert claim in printed
    assert f"{kind} of transformers from saved/{name}" in printed
    result = record(name)
    assert next(iter(result["scores"])) == score
    assert (result["accuracy"] is not None) == (score == "accuracy")
    # Norms, softmax of T5 and Llama are in float32, whatever the weights are.
    assert result["conservation"] < (1e-6 if name in ("t5", "llama") else 1e-13)
    folder = here / "pathsum-inspect" / name
    assert len(pd.read_csv(folder / "tables" / "branches.csv")) == branches
    assert pd.read_csv(folder / "tables" / "lengths.csv")["paths"].sum() == 2**branches
    samples = "images" if name.startswith("vit") else "sequences"
    figures = {f"{score}-by-length.svg", "path-lengths.svg", "orders.svg", f"{samples}.svg"}
    assert {p.name for p in (folder / "figures").glob("*.svg")} == (figures if drawn else set())
    page = (folder / "report.html").read_text()
    assert ("image" in re.sub(r"<style.*?</style>|<svg.*?</svg>", "", page, flags=re.DOTALL)) == (samples == "images")


@pytest.mark.usefixtures("undrawn")
def test_lines_of_a_text(here, prose, capsys):
    language.save("encoder", here / "bert")
    options = ["--data", prose, "--lines", "--samples", "5", "--order", "1", "--output", "pooler_output"]
    assert main(["inspect", "hf:bert", *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "the first 5 lines of prose.txt" in printed
    assert "5 lines of prose.txt are embedded" in printed
    assert record("bert")["num_rows"] == 5


@pytest.mark.usefixtures("undrawn")
def test_tokens_of_a_model_without_a_tokenizer(here, prose, capsys):
    language.save("bytes", here / "bytes")
    language.save("few", here / "few")
    language.save("gpt2", here / "gpt2")
    options = ["--data", prose, "--samples", "3", "--order", "1"]
    assert main(["inspect", "hf:bytes", *options]) == 0
    assert "each of 32 tokens; UTF-8 bytes as tokens" in " ".join(capsys.readouterr().out.split())
    err = refusal(capsys, "hf:few", *options)
    assert "GPT2LMHeadModel knows 50 tokens, but prose.txt has token" in err
    assert "give the model's own tokenizer with --tokenizer" in err
    (here / "gpt2" / "tokenizer.json").rename(here / "bytes" / "tokenizer.json")
    (here / "gpt2" / "tokenizer_config.json").rename(here / "bytes" / "tokenizer_config.json")
    assert main(["inspect", "hf:gpt2", *options, "--tokenizer", "bytes"]) == 0
    assert "tokens of bytes" in " ".join(capsys.readouterr().out.split())
    assert "no tokenizer at few; give a folder" in refusal(
        capsys, "hf:gpt2", *options, "--tokenizer", "few", "--overwrite"
    )


@pytest.mark.usefixtures("undrawn")
def test_a_language_model_from_a_file(here, prose, capsys):
    """A byte model of a user's own, without configuration or tokenizer, told apart by the text."""
    (here / "own.py").write_text("from tests.test_text import Bag\ndef bag():\n    return Bag()\n")
    assert main(["inspect", "own.py:bag", "--data", prose, "--samples", "4", "--length", "20", "--order", "2"]) == 0
    assert "of 76 next tokens in 4 sequences of prose.txt" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["hf:gpt2"], r"gpt2 reads text: say which with --data FILE\.txt"),
        (["hf:gpt2", "--data", "digits"], r"no text file at digits"),
        (["hf:gpt2", "--data", "prose.txt", "--length", "33"], r"--length is 33, but gpt2 takes at most 32 tokens"),
        (["hf:vit", "--data", "prose.txt"], r"vit looks at images, and prose\.txt is a text"),
        (["hf:vit", "--data", "digits", "--mean", "1", "2"], r"--mean has 2 values, but digits has 3 channels"),
        (["hf:vit", "--data", "digits", "--output", "hidden"], r"no output tensor was found"),
        (["hf:vit", "--data", "digits", "--image-size", "8"], r"cannot take digits's images of shape \(3, 8, 8\)"),
        (["hf:vit", "--weights", "x.safetensors"], r"--weights does not go with hf:vit"),
        (["hf:vit", "--length", "1"], r"--length is 1, expected 2 or more"),
    ],
)
def test_options_that_do_not_fit_the_model(here, prose, capsys, options, message):
    name = options[0].removeprefix("hf:")
    language.save(name, here / name)
    capsys.readouterr()
    assert re.search(message, refusal(capsys, *options))


def test_models_that_are_not_there(here, capsys):
    language.save("gpt2", here / "package" / "inner")
    (here / "empty").mkdir()
    capsys.readouterr()
    for word, message in {
        "hf:package": r"package holds no config\.json; did you mean hf:package/inner\?",
        "hf:empty": r"empty holds no config\.json: give a folder that save_pretrained wrote",
        "hf:./gone": r"no folder gone for MODEL hf:\./gone; give hf:FOLDER, or hf:NAME as on the hub",
        "hf:": r"no folder or name in MODEL hf:",
        "hf:nobody/nothing": r"no folder nobody/nothing here, and neither in the hub's cache nor from the hub can it "
        r"be had \(.+\); download it where there is a connection and give its folder, as hf:FOLDER",
    }.items():
        assert re.search(message, refusal(capsys, word, "--data", "x.txt")), word


def change(folder: Path, **values) -> None:
    """Change a saved configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_weights_that_do_not_fit_or_could_run_code(here, capsys):
    whole = language.save("gpt2", here / "whole")
    capsys.readouterr()

    def broken(name: str) -> Path:
        return Path(shutil.copytree(whole, here / name))

    change(broken("other"), n_embd=32)
    pickled = broken("pickled")
    torch.save(language.build("gpt2").state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    (broken("damaged") / "model.safetensors").write_bytes(b"nothing of use" * 9)
    code = broken("code")
    (code / "mine.py").write_text(f"open({str(here / 'ran')!r}, 'w')\n")
    change(code, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"})
    for name, message in {
        "other": r"its weights cannot be loaded \(.*\); they must be safetensors.*fit the configuration",
        "pickled": r"its weights cannot be loaded \(.*no file named model\.safetensors",
        "damaged": r"its weights cannot be loaded \(.*header",
        "code": r"its configuration cannot be read \(.*code from a model's folder is never run.*FILE\.py:FUNCTION",
    }.items():
        assert re.search(message, refusal(capsys, f"hf:{name}", "--data", "x.txt")), name
    assert not (here / "ran").exists()


def test_what_is_said_of_weights_that_are_missing_and_of_unknown_classes(here):
    change(language.save("gpt2", here / "deeper"), n_layer=3)
    target = resolve("hf:deeper")
    assert re.search(r"12 of its weights are not in the file and random \(first: transformer\.h\.2\.", target.about)
    change(language.save("encoder", here / "nameless"), architectures=["os.system"])
    target = resolve("hf:nameless")
    assert type(target.model).__name__ == "BertModel"
    assert "its configuration names no class of transformers (['os.system']), so it has no head" in target.about


def test_images_are_prepared_as_the_model_was_trained(here):
    folder = language.save("vit", here / "vit")
    assert resolve("hf:vit").mean is None
    prepare = {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepare))
    target = resolve("hf:vit")
    assert (target.mean, target.std, target.image_shape) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), (3, 16, 16))
    (folder / "preprocessor_config.json").write_text(json.dumps(prepare | {"do_normalize": False}))
    assert resolve("hf:vit").mean is None


def test_transformers_own_reports_stay_as_they_were(here):
    import transformers

    log = transformers.utils.logging
    before = (log.get_verbosity(), log.is_progress_bar_enabled())
    resolve(f"hf:{language.save('gpt2', here / 'gpt2')}")
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before


def test_a_network_without_branches_is_one_line(here, capsys):
    (here / "plain.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU())\n"
    )
    err = refusal(capsys, "plain.py:net", "--data", "digits")
    assert "Sequential has no residual joins" in err


def test_a_folder_called_model_is_named_by_its_parent(here):
    language.save("gpt2", here / "mine" / "model")
    assert resolve("hf:mine/model").name == "mine"


def test_forms_are_all_named_in_an_error():
    with pytest.raises(PathsumError) as caught:
        resolve("what-is-this")
    for form in ("torchvision:NAME", "timm:NAME", "hf:FOLDER", "FILE.py:FUNCTION", "that pathsum wrote"):
        assert form in str(caught.value)
