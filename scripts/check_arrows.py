#!/usr/bin/env python3
"""Checks that no folder of src/ includes a folder it must not (docs/architecture.md, "Folders")."""
import re
import sys
from pathlib import Path

# What each folder may include, besides itself.
ALLOWED = {
    "base": [],
    "text": ["base"],
    "hardware": ["base"],
    "kernels": ["base"],
    "parallel": ["base"],
    "weights": ["base", "parallel"],
    "models": ["base", "kernels", "parallel", "weights"],
    "engine": ["base", "models", "text", "parallel"],
    "train": ["base", "kernels", "models", "parallel", "text", "weights"],
    "cluster": ["base", "parallel", "engine", "hardware", "kernels", "models", "train", "weights"],
    "server": ["base", "cluster", "engine", "models", "text"],
    "cli": ["base", "cluster", "engine", "hardware", "models", "parallel", "server", "text", "train", "weights"],
}

wrong = []
source = Path(__file__).resolve().parent.parent / "src"
for file in sorted(source.rglob("*")):
    if file.suffix not in (".h", ".cpp"):
        continue
    folder = file.relative_to(source).parts[0]
    for included in re.findall(r'^#include "(\w+)/', file.read_text(), re.MULTILINE):
        if included != folder and included in ALLOWED and included not in ALLOWED[folder]:
            wrong.append(f"{file.relative_to(source)} includes {included}/")
print("\n".join(wrong) or f"arrows between the {len(ALLOWED)} folders of src/: as they should be")
sys.exit(1 if wrong else 0)
