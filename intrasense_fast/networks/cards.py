"""README.md of a checkpoint's folder: the model card that the Hugging Face Hub shows.

A card that somebody else wrote is never replaced: ours hold a line by which they are known.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from intrasense_fast.files import legible, write_text
from intrasense_fast.networks.contract import config_of
from intrasense_fast.version import __version__

CARD_FILE = "README.md"
LIBRARY = "intrasense-fast"
NO_DEVICE = "This is research software, not a medical device: no diagnosis may rest on it."
LICENCE = (
    "The code is MIT. The weights are made from their training images: what those allow holds for "
    "the weights too. Set `license` above accordingly before you publish them."
)
_OURS = (
    "<!-- Written by intrasense-fast, and written again with the network. "
    "Remove this line to make the card yours: then it is kept. -->"
)
_TAGS = ("image-segmentation", "medical-imaging", "ultrasound", "pytorch", "safetensors")


def is_foreign(file: Path) -> bool:
    """Is there a card that this package did not write?"""
    try:
        return _OURS not in file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False


def write_card(folder: str | os.PathLike[str], text: str) -> bool:
    """Write README.md of a folder, whole; False where one that is not ours is kept.

    Raises:
        OSError: it cannot be written; what stood there is untouched.
    """
    file = Path(folder) / CARD_FILE
    if is_foreign(file):
        return False
    write_text(file, text)
    return True


def network_card(net: nn.Module) -> str:
    """The card of a network of which nothing is known but how it is built."""
    name, config = net.architecture, config_of(net)
    options = ", ".join(f"{key}={value!r}" for key, value in config.items())
    sections = [
        ("", f"A network `{name}` for the segmentation of ultrasound images. {NO_DEVICE}"),
        ("Network", f"`{name}`: {options}."),
        (
            "Training and metrics",
            "Not recorded: the network was saved from Python. The checkpoints of "
            "`intrasense-fast train` carry a card with their data, splits and metrics.",
        ),
        ("How to load it", loading(str(name))),
        ("Licence", LICENCE),
    ]
    return card_text({"license": "other"}, str(name), sections)


def card_text(
    about: Mapping[str, Any],
    title: str,
    sections: Iterable[tuple[str, str]],
    tags: Sequence[str] = (),
) -> str:
    """A card: front matter in YAML, a title, and sections of (heading, text); an empty heading is
    left out."""
    values = {
        "library_name": LIBRARY,
        **about,
        "pipeline_tag": "image-segmentation",
        "tags": [LIBRARY, *_TAGS, *tags],
    }
    # JSON is YAML.
    front = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    parts = ["---", *front, "---", "", _OURS, "", f"# {title}"]
    for heading, text in sections:
        parts += ["", f"## {heading}"] if heading else []
        parts += ["", text]
    return legible("\n".join(parts) + "\n")


def loading(architecture: str) -> str:
    """How a folder of such a network is loaded, as Markdown."""
    if architecture == "intrasense":
        lines = [
            "from intrasense_fast import IntraSenseNet",
            "",
            'net = IntraSenseNet.from_pretrained("FOLDER or owner/name")',
        ]
    else:
        lines = [
            "from intrasense_fast.networks import load_network",
            "",
            'net = load_network("FOLDER or owner/name")',
        ]
    lines += ["probability = net(image).sigmoid()  # image (B, channels, H, W) in [0, 1]"]
    code = "\n".join(["```python", *lines, "```"])
    shell = "```bash\nintrasense-fast predict IMAGES --checkpoint FOLDER --out DIR\n```"
    made = f"Written by {LIBRARY} {__version__}; a name of the Hub needs the extra `hub`."
    return f"{code}\n\n{shell}\n\n{made}"
