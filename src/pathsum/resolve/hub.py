"""MODEL as hf:FOLDER or hf:NAME: a model of transformers, its tokenizer, and how its images are prepared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pathsum.data.checks import reason
from pathsum.data.text import Tokenizer, from_transformers
from pathsum.errors import PathsumError

from .sentence import sentence_encoder
from .target import Target, extra, refuse_weights

TAKES: dict[str, Literal["images", "text"]] = {"input_ids": "text", "pixel_values": "images"}


def from_hub(word: str, weights: Path | None) -> Target:
    """A model that save_pretrained wrote: of the class its configuration names, weights from safetensors only."""
    transformers = extra("transformers", "hf")
    refuse_weights(word, weights)
    place = located(word.partition(":")[2])
    with quiet(transformers):
        config = configuration(transformers, place, word)
        model, notes = pretrained(transformers, place, word, config)
        takes = TAKES.get(getattr(model, "main_input_name", ""))
        if takes is None:
            raise PathsumError(
                f"{word} is a {type(model).__name__}, whose input is {getattr(model, 'main_input_name', 'unknown')}; "
                "inspect looks at models of images and of text"
            )
        about = "; ".join((f"{type(model).__name__} of transformers from {place}", *notes))
        if takes == "images":
            return Target(model, named(place), about, takes=takes, **image_options(place, config))
        tokenizer = tokenizer_of(place)
        longest = longest_of(config, tokenizer)
        wrapped, pooling, most = sentence_encoder(model, lambda file: read(place, file))
    longest = min(filter(None, (longest, most)), default=None)
    return Target(wrapped, named(place), about + pooling, takes=takes, tokenizer=tokenizer, longest=longest)


def located(text: str) -> str:
    """A folder, or a name of the hub; raises PathsumError for a folder that is missing or holds no model."""
    if not text:
        raise PathsumError("no folder or name in MODEL hf:; give hf:FOLDER, or hf:NAME as on the hub")
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            below = sorted(folder.glob("*/config.json"))
            hint = f"; did you mean hf:{below[0].parent}?" if below else ": give a folder that save_pretrained wrote"
            raise PathsumError(f"{folder} holds no config.json{hint}")
        return str(folder)
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or folder.exists():
        raise PathsumError(f"no folder {folder} for MODEL hf:{text}; give hf:FOLDER, or hf:NAME as on the hub")
    return text


def named(place: str) -> str:
    """The last part of a folder or hub name that says something."""
    if not Path(place).is_dir():
        return place.rpartition("/")[2]
    path = Path(place).resolve()
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def configuration(transformers: Any, place: str, word: str) -> Any:
    """The model's configuration, without running code of its author's."""
    try:
        return transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # of the file, the hub or the connection; they differ between versions
        if not Path(place).is_dir():
            raise PathsumError(
                f"{word}: no folder {place} here, and neither in the hub's cache nor from the hub can it be had "
                f"({reason(error)}); download it where there is a connection and give its folder, as hf:FOLDER"
            ) from error
        raise PathsumError(
            f"{word}: its configuration cannot be read ({reason(error)}); code from a model's folder is never run: "
            "load such a model in a function of your own and give FILE.py:FUNCTION"
        ) from error


def pretrained(transformers: Any, place: str, word: str, config: Any) -> tuple[nn.Module, list[str]]:
    """The model in eval mode, and what there is to say of its weights."""
    names = getattr(config, "architectures", None) or []
    found = getattr(transformers, names[0], None) if names else None
    known = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    kind: Any = found if known else transformers.AutoModel
    notes = [] if known else [f"its configuration names no class of transformers ({names}), so it has no head"]
    try:
        model, info = kind.from_pretrained(
            place, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:
        raise PathsumError(
            f"{word}: its weights cannot be loaded ({reason(error)}); they must be safetensors, the only format that "
            "is read, and fit the configuration"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        notes.append(f"{len(missing)} of its weights are not in the file and random (first: {missing[0]})")
    return model.eval(), notes


def image_options(place: str, config: Any) -> dict[str, Any]:
    """Shape, mean and standard deviation of the images that the model was made for, as far as its files say."""
    prepare = read(place, "preprocessor_config.json") or {}
    size = getattr(config, "image_size", None) or prepare.get("crop_size") or prepare.get("size")
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else size.get("shortest_edge")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(config, "num_channels", 3)
    options: dict[str, Any] = {"image_shape": (channels, height, width) if height else None}
    if prepare.get("do_normalize", True):
        options |= {k: tuple(prepare[f"image_{k}"]) for k in ("mean", "std") if prepare.get(f"image_{k}")}
    return options


def tokenizer_at(word: str) -> Tokenizer:
    """The tokenizer in a folder or on the hub; raises PathsumError where there is none."""
    found = tokenizer_of(word.removeprefix("hf:"))
    if found is None:
        raise PathsumError(f"no tokenizer at {word}; give a folder that its save_pretrained wrote, or a hub name")
    return replace(found, about=f"tokens of {word}")


def tokenizer_of(place: str) -> Tokenizer | None:
    """The tokenizer that lies beside a model; None where there is none."""
    transformers = extra("transformers", "hf")
    try:
        found = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        if not any(read(place, file) for file in ("tokenizer.json", "tokenizer_config.json")):
            return None
        raise PathsumError(
            f"the tokenizer of {place} cannot be loaded ({reason(error)}); save it again with save_pretrained"
        ) from error
    return None if len(found) <= len(found.all_special_tokens) else from_transformers(found)


def longest_of(config: Any, tokenizer: Tokenizer | None) -> int | None:
    """Most tokens of a sequence; None where nothing bounds it."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    most = getattr(text, "max_position_embeddings", None)
    if most and getattr(text, "model_type", "") in OFFSET:
        most -= text.pad_token_id + 1
    return min(filter(None, (most, tokenizer and tokenizer.longest)), default=None)


# Their position embeddings begin behind that of padding.
OFFSET = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "esm")


def read(place: str, file: str) -> Any:
    """A JSON file beside the model, on disk or on the hub; None where there is none."""
    from transformers.utils import cached_file

    try:
        path = cached_file(place, file)
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Neither reports nor bars of transformers and its hub: what matters of them is said in our own words."""
    from huggingface_hub.utils import logging as hub

    log = transformers.utils.logging
    before, bars, hub_before = log.get_verbosity(), log.is_progress_bar_enabled(), hub.get_verbosity()
    log.set_verbosity_error()
    hub.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        hub.set_verbosity(hub_before)
        if bars:
            log.enable_progress_bar()
