"""Write fixtures/resnet50.{json,npz}: keys, shapes and feature maps of an independent ResNet-50
v1.5.

Run once where Hugging Face's transformers can be imported: python -m
tests.model.make_resnet50_fixture
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.support.seeded_weights import seeded_image, seeded_weights

FIXTURES = Path(__file__).parent / "fixtures"
RENAMES = (
    (r"^embedder\.embedder\.convolution", "conv1"),
    (r"^embedder\.embedder\.normalization", "bn1"),
    (
        r"^encoder\.stages\.(\d)\.layers\.(\d)\.",
        lambda match: f"layer{int(match[1]) + 1}.{match[2]}.",
    ),
    (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"),
    (r"layer\.(\d)\.convolution", lambda match: f"conv{int(match[1]) + 1}"),
    (r"layer\.(\d)\.normalization", lambda match: f"bn{int(match[1]) + 1}"),
)


def torchvision_name(key: str) -> str:
    for pattern, name in RENAMES:
        key = re.sub(pattern, name, key)
    return key


def main() -> None:
    model = transformers.ResNetModel(transformers.ResNetConfig()).eval()
    names = {key: torchvision_name(key) for key in model.state_dict()}
    shapes = {names[key]: list(value.shape) for key, value in model.state_dict().items()}
    weights = seeded_weights(shapes)
    model.load_state_dict({key: torch.from_numpy(weights[name]) for key, name in names.items()})
    stem: list[torch.Tensor] = []
    model.embedder.embedder.register_forward_hook(
        lambda module, inputs, output: stem.append(output)
    )
    with torch.no_grad():
        hidden = model.double()(
            torch.from_numpy(seeded_image(3, 32, 64)).double(), output_hidden_states=True
        ).hidden_states
    maps = {
        f"stride_{stride}": value.float().numpy()
        for stride, value in zip((2, 4, 8, 16, 32), (*stem, *hidden[1:]), strict=True)
    }
    FIXTURES.mkdir(exist_ok=True)
    (FIXTURES / "resnet50.json").write_text(json.dumps(shapes, indent=0) + "\n")
    np.savez_compressed(
        FIXTURES / "resnet50.npz",
        **maps,
        made_with=np.array(f"transformers {transformers.__version__}"),
    )


if __name__ == "__main__":
    main()
