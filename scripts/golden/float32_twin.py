"""A quantised model's twin: the same numbers as an ordinary float32 checkpoint, for transformers to compute with."""
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def load_folder(folder):
    """All tensors of a checkpoint folder."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def write_twin(folder, twin, tensors):
    """Writes `tensors` with the config.json of `folder`, less its quantisation."""
    twin.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
    (twin / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()},
              twin / "model.safetensors", {"format": "pt"})
    return twin
